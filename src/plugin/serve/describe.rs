//! gRPC reflection, a plugin's side: it tells its contract from the descriptors that its author has
//! from the compiler.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use futures::StreamExt as _;
use prost::Message as _;
use prost_reflect::prost_types::{DescriptorProto, FileDescriptorProto};
use tonic::Code;

use super::{
    Descriptors,
    by_hand::{Answered, Answers, Asked, Methods, both_ways, unknown},
};
use crate::{
    Error,
    wire::{
        REFLECTION, REFLECTION_ALPHA, REFLECTION_ALPHA_INFO, REFLECTION_INFO, ReflectionAnswer,
        ReflectionFiles, ReflectionFound as Found, ReflectionName, ReflectionQuestion as Question,
        ReflectionRefused, ReflectionRequest, ReflectionServices, full_name,
    },
};

/// A plugin's descriptors: where each name is described.
pub(super) struct Described {
    files: HashMap<String, Bytes>,
    symbols: HashMap<String, Bytes>,
    services: Vec<String>,
}

impl Described {
    /// Fails where the set is none, and where a service is not in it.
    pub(super) fn new(descriptors: &Descriptors) -> Result<Self, Error> {
        let wrong = |error| Error::Contract(format!("the descriptors are no file set: {error}"));
        // A set has its files as the answers of reflection do, each still encoded.
        let set = ReflectionFiles::decode(descriptors.set.as_slice()).map_err(wrong)?;
        let services = descriptors.services.clone();
        let mut described = Self { files: HashMap::new(), symbols: HashMap::new(), services };
        for encoded in set.files {
            let file = FileDescriptorProto::decode(encoded.clone()).map_err(wrong)?;
            described.file(&file, &encoded);
        }
        let missing = described.services.iter().find(|name| !described.symbols.contains_key(*name));
        match missing {
            Some(name) => Err(Error::Contract(format!("the descriptors have no service {name}"))),
            None => Ok(described),
        }
    }

    fn file(&mut self, file: &FileDescriptorProto, encoded: &Bytes) {
        let package = file.package();
        for message in &file.message_type {
            self.message(package, message, encoded);
        }
        for one in &file.enum_type {
            self.symbols.insert(full_name(package, one.name()), encoded.clone());
        }
        for service in &file.service {
            let name = full_name(package, service.name());
            for method in &service.method {
                self.symbols.insert(full_name(&name, method.name()), encoded.clone());
            }
            self.symbols.insert(name, encoded.clone());
        }
        self.files.insert(file.name().to_owned(), encoded.clone());
    }

    fn message(&mut self, scope: &str, message: &DescriptorProto, encoded: &Bytes) {
        let name = full_name(scope, message.name());
        for nested in &message.nested_type {
            self.message(&name, nested, encoded);
        }
        for one in &message.enum_type {
            self.symbols.insert(full_name(&name, one.name()), encoded.clone());
        }
        self.symbols.insert(name, encoded.clone());
    }

    fn answer(&self, asked: ReflectionRequest) -> ReflectionAnswer {
        let (name, file) = match asked.question {
            Some(Question::Services(_)) => {
                let service = |name: &String| ReflectionName { name: name.clone() };
                let services = self.services.iter().map(service).collect();
                let found = Found::Services(ReflectionServices { services });
                return ReflectionAnswer { found: Some(found) };
            }
            Some(Question::FileByName(name)) => {
                let file = self.files.get(&name);
                (name, file)
            }
            Some(Question::FileOfSymbol(name)) => {
                let file = self.symbols.get(&name);
                (name, file)
            }
            None => return refused(Code::Unimplemented, "this question has no answer".to_owned()),
        };
        match file {
            Some(file) => {
                let files = ReflectionFiles { files: vec![file.clone()] };
                ReflectionAnswer { found: Some(Found::Files(files)) }
            }
            None => refused(Code::NotFound, format!("{name} is not described")),
        }
    }
}

fn refused(code: Code, message: String) -> ReflectionAnswer {
    let refused = ReflectionRefused { code: code.into(), message };
    ReflectionAnswer { found: Some(Found::Refused(refused)) }
}

/// `grpc.reflection.v1.ServerReflection`.
#[derive(Clone)]
pub(super) struct Reflect(pub(super) Arc<Described>);

/// `grpc.reflection.v1alpha.ServerReflection`: the same for clients from before 2023.
#[derive(Clone)]
pub(super) struct ReflectAlpha(pub(super) Arc<Described>);

impl Methods for Reflect {
    const NAME: &'static str = REFLECTION;

    async fn answer(self, path: String, asked: Asked) -> Answered {
        tell(self.0, path, asked).await
    }
}

impl Methods for ReflectAlpha {
    const NAME: &'static str = REFLECTION_ALPHA;

    async fn answer(self, path: String, asked: Asked) -> Answered {
        tell(self.0, path, asked).await
    }
}

async fn tell(described: Arc<Described>, path: String, asked: Asked) -> Answered {
    if ![REFLECTION_INFO, REFLECTION_ALPHA_INFO].contains(&path.as_str()) {
        return unknown(&path);
    }
    let talk = move |questions: tonic::Streaming<ReflectionRequest>| {
        let described = Arc::clone(&described);
        let answered =
            questions.map(move |question| question.map(|question| described.answer(question)));
        Ok(Answers::new(answered))
    };
    both_ways(asked, talk).await
}

#[cfg(test)]
mod tests {
    use prost_reflect::prost_types::{
        EnumDescriptorProto, FileDescriptorSet, MethodDescriptorProto, ServiceDescriptorProto,
    };

    use super::*;

    fn described() -> Described {
        let one = EnumDescriptorProto { name: Some("E".into()), ..Default::default() };
        let inner = DescriptorProto {
            name: Some("Inner".into()),
            enum_type: vec![one],
            ..Default::default()
        };
        let outer = DescriptorProto {
            name: Some("Outer".into()),
            nested_type: vec![inner],
            ..Default::default()
        };
        let method = MethodDescriptorProto { name: Some("Do".into()), ..Default::default() };
        let service = ServiceDescriptorProto {
            name: Some("Doer".into()),
            method: vec![method],
            ..Default::default()
        };
        let file = FileDescriptorProto {
            name: Some("a.proto".into()),
            package: Some("a.b".into()),
            message_type: vec![outer],
            service: vec![service],
            ..Default::default()
        };
        let set = FileDescriptorSet { file: vec![file] }.encode_to_vec();
        let services = vec!["a.b.Doer".to_owned()];
        let lacking = Descriptors { set: set.clone(), services: vec!["a.b.Other".to_owned()] };
        assert!(Described::new(&lacking).is_err());
        Described::new(&Descriptors { set, services }).unwrap()
    }

    fn answer(question: Question) -> Found {
        let asked = ReflectionRequest { host: String::new(), question: Some(question) };
        described().answer(asked).found.unwrap()
    }

    #[test]
    fn every_name_leads_to_its_file() {
        for name in ["a.b.Outer", "a.b.Outer.Inner", "a.b.Outer.Inner.E", "a.b.Doer", "a.b.Doer.Do"]
        {
            let found = answer(Question::FileOfSymbol(name.to_owned()));
            assert!(matches!(found, Found::Files(found) if found.files.len() == 1), "{name}");
        }
        let found = answer(Question::FileByName("a.proto".to_owned()));
        assert!(matches!(found, Found::Files(_)));
    }

    #[test]
    fn what_is_not_there_is_refused() {
        for question in [
            Question::FileOfSymbol("a.b".to_owned()),
            Question::FileOfSymbol(String::new()),
            Question::FileByName("b.proto".to_owned()),
        ] {
            let found = answer(question);
            let code = i32::from(Code::NotFound);
            assert!(matches!(found, Found::Refused(refused) if refused.code == code));
        }
        let nothing = ReflectionRequest { host: String::new(), question: None };
        assert!(matches!(described().answer(nothing).found, Some(Found::Refused(_))));
        let torn = Descriptors { set: vec![0x0a, 0xff], services: Vec::new() };
        assert!(Described::new(&torn).is_err());
    }

    #[test]
    fn services_are_listed_by_full_name() {
        let Found::Services(found) = answer(Question::Services("*".to_owned())) else {
            panic!("no list");
        };
        let names: Vec<_> = found.services.into_iter().map(|service| service.name).collect();
        assert_eq!(names, ["a.b.Doer"]);
    }
}

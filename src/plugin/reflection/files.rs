//! The descriptor files of a plugin, until they are complete.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    mem,
};

use bytes::Bytes;
use prost::Message as _;
use prost_reflect::{DescriptorPool, MessageDescriptor, prost_types::FileDescriptorProto};

use super::{
    bounds::{self, Budget},
    check,
};
use crate::{Error, limits};

/// Files that have come so far, by name.
pub(super) struct Files {
    /// Google's own types, as this program knows them, whatever the plugin says of them.
    known: DescriptorPool,
    described: MessageDescriptor,
    found: BTreeMap<String, FileDescriptorProto>,
    /// Imports that have not been looked at.
    wanted: Vec<String>,
    /// Imports that the plugin does not have, such as those for options only.
    absent: HashSet<String>,
    bytes: usize,
    values: Budget,
}

impl Files {
    pub(super) fn new() -> Self {
        let known = DescriptorPool::global();
        let described = known
            .get_message_by_name("google.protobuf.FileDescriptorProto")
            .expect("BUG: prost-reflect has it");
        Self {
            known,
            described,
            found: BTreeMap::new(),
            wanted: Vec::new(),
            absent: HashSet::new(),
            bytes: 0,
            values: Budget::new(limits::DESCRIPTOR_VALUES_MAX),
        }
    }

    /// Takes an encoded `FileDescriptorProto`. One that came before is passed over. Fails where it
    /// is not as it should be, and where it is too much with all before.
    pub(super) fn add(&mut self, encoded: &Bytes) -> Result<(), Error> {
        Error::at_most(
            "plugin's description, in bytes,",
            self.bytes.saturating_add(encoded.len()),
            limits::DESCRIPTOR_BYTES_MAX,
        )?;
        self.bytes += encoded.len();
        let encoded = bounds::without_source(encoded)?;
        self.values.message(&encoded, &self.described)?;
        let mut file = FileDescriptorProto::decode(encoded.as_slice()).map_err(|error| {
            Error::Contract(format!("the plugin's description cannot be decoded: {error}"))
        })?;
        check::clean(&mut file)?;
        if !self.has(file.name()) {
            self.wanted.extend_from_slice(&file.dependency);
            self.found.insert(file.name().to_owned(), file);
        }
        Error::at_most(
            "number of files of descriptors",
            self.found.len(),
            limits::DESCRIPTOR_FILES_MAX,
        )
    }

    /// A file that is imported and has not come yet, each once; `None`: they are complete.
    pub(super) fn missing(&mut self) -> Option<String> {
        while let Some(name) = self.wanted.pop() {
            if !self.has(&name) && !self.absent.contains(&name) {
                return Some(name);
            }
        }
        None
    }

    /// The plugin does not have this file. Nor does anybody need it, most likely: a type that is
    /// in none of the files makes [`Files::pool`] fail.
    pub(super) fn absent(&mut self, name: String) {
        if !self.has(&name) {
            self.absent.insert(name);
        }
    }

    fn has(&self, name: &str) -> bool {
        self.found.contains_key(name) || self.known.get_file_by_name(name).is_some()
    }

    /// All files with Google's own types. Fails where they do not fit together.
    pub(super) fn pool(mut self) -> Result<DescriptorPool, Error> {
        let imports = self.imports()?;
        for (file, imports) in self.found.values_mut().zip(imports) {
            file.dependency = imports;
            file.public_dependency = Vec::new();
        }
        let mut pool = mem::take(&mut self.known);
        pool.add_file_descriptor_protos(self.found.into_values()).map_err(|error| {
            let reason: String =
                error.to_string().chars().take(limits::UNFIT_CHARACTERS_MAX).collect();
            Error::Contract(format!("the plugin's description is wrong: {reason}"))
        })?;
        Ok(pool)
    }

    /// For each file, in order, its imports with the public imports of those, and so on. They are
    /// resolved here, since prost-reflect never ends with some that import each other.
    fn imports(&self) -> Result<Vec<Vec<String>>, Error> {
        let public: HashMap<&str, Vec<&str>> =
            self.found.iter().map(|(name, file)| (name.as_str(), public(file))).collect();
        let mut total = 0_usize;
        let mut all = Vec::with_capacity(self.found.len());
        for file in self.found.values() {
            let mut seen: HashSet<&str> = HashSet::new();
            let mut next: Vec<&str> = file.dependency.iter().map(String::as_str).collect();
            while let Some(name) = next.pop() {
                if self.has(name) && seen.insert(name) {
                    total += 1;
                    Error::at_most("number of imports", total, limits::DESCRIPTOR_IMPORTS_MAX)?;
                    next.extend(public.get(name).into_iter().flatten());
                }
            }
            all.push(seen.into_iter().map(str::to_owned).collect());
        }
        Ok(all)
    }
}

fn public(file: &FileDescriptorProto) -> Vec<&str> {
    let at = |index: &i32| file.dependency.get(usize::try_from(*index).ok()?);
    file.public_dependency.iter().filter_map(at).map(String::as_str).collect()
}

#[cfg(test)]
mod tests {
    use prost_reflect::prost_types::{
        DescriptorProto, FieldDescriptorProto, field_descriptor_proto::Type,
    };

    use super::*;

    fn file(name: &str, message: &str, of: &str) -> FileDescriptorProto {
        let field = FieldDescriptorProto {
            name: Some("f".into()),
            number: Some(1),
            r#type: Some(Type::Message.into()),
            type_name: Some(of.into()),
            ..Default::default()
        };
        FileDescriptorProto {
            name: Some(name.into()),
            syntax: Some("proto3".into()),
            message_type: vec![DescriptorProto {
                name: Some(message.into()),
                field: vec![field],
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    fn importing(file: FileDescriptorProto, imports: &[&str]) -> FileDescriptorProto {
        let dependency: Vec<String> = imports.iter().map(|name| (*name).to_owned()).collect();
        let public_dependency = (0..).take(dependency.len()).collect();
        FileDescriptorProto { dependency, public_dependency, ..file }
    }

    fn joined(files: &[FileDescriptorProto]) -> Result<DescriptorPool, Error> {
        let mut all = Files::new();
        for file in files {
            all.add(&file.encode_to_vec().into())?;
        }
        while let Some(name) = all.missing() {
            all.absent(name);
        }
        all.pool()
    }

    #[test]
    fn public_imports_in_a_circle_are_resolved() {
        let pool = joined(&[
            importing(file("a", "A", ".B"), &["b"]),
            importing(file("b", "B", ".C"), &["c"]),
            importing(file("c", "C", ".A"), &["a"]),
            // By way of a, it sees b and c.
            importing(file("d", "D", ".C"), &["a", "options.proto"]),
        ]);
        assert!(pool.unwrap().get_message_by_name("D").is_some());
    }

    #[test]
    fn googles_types_are_our_own() {
        let theirs = FileDescriptorProto {
            package: Some("google.protobuf".into()),
            ..file("google/protobuf/any.proto", "Any", ".google.protobuf.Any")
        };
        let pool = joined(std::slice::from_ref(&theirs)).unwrap();
        let any = pool.get_message_by_name("google.protobuf.Any").unwrap();
        assert!(any.get_field_by_name("type_url").is_some());
        let elsewhere = FileDescriptorProto { name: Some("a".into()), ..theirs };
        let error = joined(&[elsewhere]).unwrap_err().to_string();
        assert!(error.contains("google.protobuf.Any"), "{error}");
    }

    #[test]
    fn a_type_that_is_nowhere_is_named() {
        let error = joined(&[file("a", "A", ".Missing")]).unwrap_err().to_string();
        assert!(error.contains("Missing"), "{error}");
    }

    #[test]
    fn files_have_limits() {
        let huge = Bytes::from(vec![0; limits::DESCRIPTOR_BYTES_MAX + 1]);
        assert!(matches!(Files::new().add(&huge), Err(Error::TooLarge { .. })));
        // Empty messages: two bytes each, and some hundred in memory.
        let empty = Bytes::from([0x22, 0].repeat(limits::DESCRIPTOR_VALUES_MAX));
        assert!(matches!(Files::new().add(&empty), Err(Error::TooLarge { .. })));
        let mut files = Files::new();
        let many = (0..=limits::DESCRIPTOR_FILES_MAX).try_for_each(|n| {
            let file = FileDescriptorProto { name: Some(format!("{n}")), ..Default::default() };
            files.add(&file.encode_to_vec().into())
        });
        assert!(matches!(many, Err(Error::TooLarge { limit: limits::DESCRIPTOR_FILES_MAX, .. })));
    }
}

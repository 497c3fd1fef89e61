//! What a plugin's descriptors must not say. prost-reflect trusts descriptors: a map without a
//! value, an unknown syntax or a torn default ends in a panic there, public imports in a circle in
//! an endless recursion, and long names or many ranges in time and memory that grow as their
//! product. So whatever JSON does not need is taken out, and whatever is left is looked at.

use std::fmt::Display;

use prost_reflect::prost_types::{
    DescriptorProto, EnumDescriptorProto, EnumOptions, FieldDescriptorProto, FieldOptions,
    FileDescriptorProto, MessageOptions, ServiceDescriptorProto,
    field_descriptor_proto::{Label, Type},
};

use crate::{Error, limits, wire::full_name};

/// Looks at a file, and takes out options, extensions, defaults and ranges.
pub(super) fn clean(file: &mut FileDescriptorProto) -> Result<(), Error> {
    let name = file.name();
    if name.is_empty() || name.len() > limits::DESCRIPTOR_NAME_BYTES_MAX {
        return Err(wrong("a file's name", name, up_to(limits::DESCRIPTOR_NAME_BYTES_MAX)));
    }
    if file.syntax().is_empty() {
        file.syntax = None;
    }
    if !matches!(file.syntax.as_deref(), None | Some("proto2" | "proto3")) {
        return Err(wrong("the syntax", file.syntax(), "proto2 or proto3"));
    }
    let package = file.package().to_owned();
    if !package.is_empty() {
        for word in package.split('.') {
            is_word(word)?;
        }
        is_full_name(&package)?;
    }
    file.options = None;
    file.source_code_info = None;
    file.weak_dependency.clear();
    file.extension.clear();
    for message in &mut file.message_type {
        clean_message(message, &package)?;
    }
    for one in &mut file.enum_type {
        clean_enum(one, &package)?;
    }
    for service in &mut file.service {
        clean_service(service, &package)?;
    }
    Ok(())
}

fn clean_message(message: &mut DescriptorProto, scope: &str) -> Result<(), Error> {
    let full = join(scope, message.name())?;
    message.extension.clear();
    message.extension_range.clear();
    message.reserved_range.clear();
    message.reserved_name.clear();
    let is_map_entry = message.options.as_ref().is_some_and(MessageOptions::map_entry);
    message.options =
        is_map_entry.then(|| MessageOptions { map_entry: Some(true), ..MessageOptions::default() });
    if is_map_entry {
        is_entry(message, &full)?;
    }
    Error::at_most(
        "number of fields in a message",
        message.field.len(),
        limits::MESSAGE_FIELDS_MAX,
    )?;
    for field in &mut message.field {
        clean_field(field, &full)?;
    }
    for oneof in &mut message.oneof_decl {
        join(&full, oneof.name())?;
        oneof.options = None;
    }
    for one in &mut message.enum_type {
        clean_enum(one, &full)?;
    }
    for nested in &mut message.nested_type {
        clean_message(nested, &full)?;
    }
    Ok(())
}

/// A map's entry has a key and a value and nothing else.
fn is_entry(message: &DescriptorProto, full: &str) -> Result<(), Error> {
    let is_single = |field: &FieldDescriptorProto, number| {
        field.number() == number && field.label() == Label::Optional && field.oneof_index.is_none()
    };
    let is_key = |field: &FieldDescriptorProto| match field.r#type() {
        Type::Double | Type::Float | Type::Bytes => false,
        Type::Enum | Type::Message | Type::Group => false,
        _ => field.type_name().is_empty(),
    };
    match message.field.as_slice() {
        [key, value] if is_single(key, 1) && is_single(value, 2) && is_key(key) => Ok(()),
        _ => Err(wrong("a map", full, "one key, as number 1, and one value, as number 2")),
    }
}

fn clean_field(field: &mut FieldDescriptorProto, scope: &str) -> Result<(), Error> {
    let full = join(scope, field.name())?;
    let json = field.json_name();
    if json.len() > limits::DESCRIPTOR_WORD_BYTES_MAX {
        return Err(wrong("a name in JSON", json, up_to(limits::DESCRIPTOR_WORD_BYTES_MAX)));
    }
    if field.r#type() == Type::Group {
        return Err(wrong("the field", &full, "another type: groups are not supported"));
    }
    if !field.type_name().is_empty() {
        is_type_name(field.type_name())?;
    }
    if field.label() == Label::Repeated {
        if field.oneof_index.is_some() {
            return Err(wrong("the field", &full, "no place in a oneof: it is a list"));
        }
        field.proto3_optional = None;
    }
    field.extendee = None;
    field.default_value = None;
    let packed = field.options.as_ref().and_then(|options| options.packed);
    field.options =
        packed.map(|packed| FieldOptions { packed: Some(packed), ..FieldOptions::default() });
    Ok(())
}

fn clean_enum(one: &mut EnumDescriptorProto, scope: &str) -> Result<(), Error> {
    join(scope, one.name())?;
    Error::at_most("number of values in an enumeration", one.value.len(), limits::ENUM_VALUES_MAX)?;
    one.reserved_range.clear();
    one.reserved_name.clear();
    let allow_alias = one.options.as_ref().and_then(|options| options.allow_alias);
    one.options =
        allow_alias.map(|alias| EnumOptions { allow_alias: Some(alias), ..EnumOptions::default() });
    for value in &mut one.value {
        // Values stand beside their enumeration, not in it.
        join(scope, value.name())?;
        value.options = None;
    }
    Ok(())
}

fn clean_service(service: &mut ServiceDescriptorProto, scope: &str) -> Result<(), Error> {
    let full = join(scope, service.name())?;
    service.options = None;
    for method in &mut service.method {
        join(&full, method.name())?;
        is_type_name(method.input_type())?;
        is_type_name(method.output_type())?;
        method.options = None;
    }
    Ok(())
}

fn join(scope: &str, name: &str) -> Result<String, Error> {
    is_word(name)?;
    let full = full_name(scope, name);
    is_full_name(&full)?;
    Ok(full)
}

fn is_word(name: &str) -> Result<(), Error> {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let starts = name.bytes().next().is_some_and(|byte| is_part(byte) && !byte.is_ascii_digit());
    if starts && name.len() <= limits::DESCRIPTOR_WORD_BYTES_MAX && name.bytes().all(is_part) {
        return Ok(());
    }
    Err(wrong("a name", name, "a short word of letters, digits and underscores"))
}

fn is_full_name(name: &str) -> Result<(), Error> {
    if name.len() > limits::DESCRIPTOR_NAME_BYTES_MAX {
        return Err(wrong("a full name", name, up_to(limits::DESCRIPTOR_NAME_BYTES_MAX)));
    }
    Ok(())
}

/// A relative name would be looked for in every scope around it. Compilers write full ones only.
fn is_type_name(name: &str) -> Result<(), Error> {
    if name.starts_with('.') && name.len() <= limits::DESCRIPTOR_NAME_BYTES_MAX {
        return Ok(());
    }
    Err(wrong("a type's name", name, "a full name that starts with a dot"))
}

fn up_to(bytes: usize) -> String {
    format!("1 to {bytes} bytes long")
}

fn wrong(what: &str, is: &str, should: impl Display) -> Error {
    let is: String = is.chars().take(limits::QUOTED_CHARACTERS_MAX).collect();
    Error::Contract(format!("the plugin's description is wrong: {what} is {is:?}, not {should}"))
}

#[cfg(test)]
mod tests {
    use prost_reflect::prost_types::{EnumValueDescriptorProto, OneofDescriptorProto};

    use super::*;

    fn field(name: &str, number: i32, of: Type) -> FieldDescriptorProto {
        FieldDescriptorProto {
            name: Some(name.into()),
            number: Some(number),
            label: Some(Label::Optional.into()),
            r#type: Some(of.into()),
            ..Default::default()
        }
    }

    fn file(message: DescriptorProto) -> FileDescriptorProto {
        FileDescriptorProto {
            name: Some("a.proto".into()),
            package: Some("a.b".into()),
            syntax: Some("proto3".into()),
            message_type: vec![message],
            ..Default::default()
        }
    }

    fn message(field: Vec<FieldDescriptorProto>) -> DescriptorProto {
        DescriptorProto { name: Some("M".into()), field, ..Default::default() }
    }

    fn entry(field: Vec<FieldDescriptorProto>) -> DescriptorProto {
        let options = MessageOptions { map_entry: Some(true), ..Default::default() };
        DescriptorProto { options: Some(options), ..message(field) }
    }

    #[test]
    fn a_map_has_one_key_and_one_value() {
        let key = |of| field("key", 1, of);
        let value = field("value", 2, Type::Bytes);
        assert!(clean(&mut file(entry(vec![key(Type::String), value.clone()]))).is_ok());
        let repeated =
            FieldDescriptorProto { label: Some(Label::Repeated.into()), ..value.clone() };
        let named = FieldDescriptorProto { type_name: Some(".a.b.M".into()), ..key(Type::Int32) };
        for fields in [
            vec![],
            vec![key(Type::String)],
            vec![value.clone(), key(Type::String)],
            vec![key(Type::Double), value.clone()],
            vec![key(Type::Message), value.clone()],
            vec![named, value.clone()],
            vec![key(Type::String), repeated],
            vec![key(Type::String), value, field("more", 3, Type::Bool)],
        ] {
            assert!(clean(&mut file(entry(fields.clone()))).is_err(), "{fields:?}");
        }
    }

    #[test]
    fn what_json_does_not_need_is_taken_out() {
        let torn = FieldDescriptorProto {
            default_value: Some("\\xé\\777".into()),
            options: Some(FieldOptions {
                packed: Some(true),
                deprecated: Some(true),
                ..Default::default()
            }),
            ..field("f", 1, Type::Bytes)
        };
        let mut file = file(message(vec![torn]));
        assert!(clean(&mut file).is_ok());
        let cleaned = &file.message_type[0].field[0];
        assert_eq!(cleaned.default_value, None);
        let packed = FieldOptions { packed: Some(true), ..Default::default() };
        assert_eq!(cleaned.options, Some(packed));
    }

    #[test]
    fn names_are_words_of_a_limited_length() {
        for name in ["", "1a", "a b", "a.b", "é", &"a".repeat(257)] {
            assert!(clean(&mut file(message(vec![field(name, 1, Type::Bool)]))).is_err(), "{name}");
        }
        // Each word is short, and together they are long.
        let nested = (0..20).fold(message(vec![]), |inner, _| DescriptorProto {
            name: Some("n".repeat(100)),
            nested_type: vec![inner],
            ..Default::default()
        });
        assert!(clean(&mut file(nested)).is_err());
    }

    #[test]
    fn what_would_panic_or_never_end_is_refused() {
        let named = |name: &str| FieldDescriptorProto {
            type_name: Some(name.into()),
            ..field("f", 1, Type::Message)
        };
        let in_oneof = FieldDescriptorProto {
            label: Some(Label::Repeated.into()),
            oneof_index: Some(0),
            ..field("f", 1, Type::Bool)
        };
        let oneof = OneofDescriptorProto { name: Some("o".into()), options: None };
        let listed = DescriptorProto { oneof_decl: vec![oneof], ..message(vec![in_oneof]) };
        for mut wrong in [
            FileDescriptorProto { syntax: Some("editions".into()), ..file(message(vec![])) },
            FileDescriptorProto { name: None, ..file(message(vec![])) },
            FileDescriptorProto { package: Some("a..b".into()), ..file(message(vec![])) },
            file(message(vec![field("f", 1, Type::Group)])),
            file(message(vec![named("M")])),
            file(message((0..1_025).map(|n| field("f", n, Type::Bool)).collect())),
            file(listed),
        ] {
            assert!(clean(&mut wrong).is_err(), "{wrong:?}");
        }
        let value = EnumValueDescriptorProto { name: Some("V".into()), ..Default::default() };
        let many = EnumDescriptorProto {
            name: Some("E".into()),
            value: vec![value; limits::ENUM_VALUES_MAX + 1],
            ..Default::default()
        };
        let mut wrong = FileDescriptorProto { enum_type: vec![many], ..file(message(vec![])) };
        assert!(clean(&mut wrong).is_err());
    }
}

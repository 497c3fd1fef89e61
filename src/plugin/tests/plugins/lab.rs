//! `lab.proto` in Rust, for the plugin and for the tests. One of these compares both.

use bytes::Bytes;
use prost_reflect::prost_types::{
    DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    MethodDescriptorProto, ServiceDescriptorProto,
    field_descriptor_proto::{Label, Type},
};

/// The plugin's service, and the paths of its methods.
pub(crate) const TRANSFORM: &str = "flexcore.lab.v1.Transform";
pub(crate) const APPLY: &str = "/flexcore.lab.v1.Transform/Apply";
pub(crate) const APPLY_STREAM: &str = "/flexcore.lab.v1.Transform/ApplyStream";

/// The path of the host's one method.
pub(crate) const ADD: &str = "/flexcore.lab.v1.HostAdder/Add";

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct TransformRequest {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) payload: Bytes,
    #[prost(uint32, tag = "3")]
    pub(crate) callback_id: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct TransformResponse {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) payload: Bytes,
    #[prost(string, tag = "3")]
    pub(crate) note: String,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct AddRequest {
    #[prost(int64, tag = "1")]
    pub(crate) a: i64,
    #[prost(int64, tag = "2")]
    pub(crate) b: i64,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct AddResponse {
    #[prost(int64, tag = "1")]
    pub(crate) sum: i64,
}

/// What the compiler of Protocol Buffers makes of the file.
pub(crate) fn descriptors() -> FileDescriptorSet {
    let file = FileDescriptorProto {
        name: Some("lab.proto".into()),
        package: Some("flexcore.lab.v1".into()),
        syntax: Some("proto3".into()),
        message_type: vec![
            message(
                "TransformRequest",
                &[("id", Type::String), ("payload", Type::Bytes), ("callback_id", Type::Uint32)],
            ),
            message(
                "TransformResponse",
                &[("id", Type::String), ("payload", Type::Bytes), ("note", Type::String)],
            ),
            message("AddRequest", &[("a", Type::Int64), ("b", Type::Int64)]),
            message("AddResponse", &[("sum", Type::Int64)]),
        ],
        service: vec![
            ServiceDescriptorProto {
                name: Some("Transform".into()),
                method: vec![
                    method("Apply", "Transform", false),
                    method("ApplyStream", "Transform", true),
                ],
                options: None,
            },
            ServiceDescriptorProto {
                name: Some("HostAdder".into()),
                method: vec![method("Add", "Add", false)],
                options: None,
            },
        ],
        ..FileDescriptorProto::default()
    };
    FileDescriptorSet { file: vec![file] }
}

/// A message whose fields are numbered in this order.
fn message(name: &str, fields: &[(&str, Type)]) -> DescriptorProto {
    let field = |(number, (name, of)): (i32, &(&str, Type))| FieldDescriptorProto {
        name: Some((*name).to_owned()),
        number: Some(number),
        label: Some(Label::Optional.into()),
        r#type: Some((*of).into()),
        ..FieldDescriptorProto::default()
    };
    DescriptorProto {
        name: Some(name.to_owned()),
        field: (1..).zip(fields).map(field).collect(),
        ..DescriptorProto::default()
    }
}

/// A method from `{what}Request` to `{what}Response`.
fn method(name: &str, what: &str, streams: bool) -> MethodDescriptorProto {
    MethodDescriptorProto {
        name: Some(name.to_owned()),
        input_type: Some(format!(".flexcore.lab.v1.{what}Request")),
        output_type: Some(format!(".flexcore.lab.v1.{what}Response")),
        client_streaming: Some(streams),
        server_streaming: Some(streams),
        options: None,
    }
}

//! Messages of go-plugin's services, of gRPC health checks, and of reflection: the names and
//! numbers on the wire, written by hand, since they are few.

use base64::{
    alphabet,
    engine::{
        DecodePaddingMode,
        general_purpose::{GeneralPurpose, GeneralPurposeConfig},
    },
};

/// gRPC's own health checks.
pub(crate) const HEALTH: &str = "grpc.health.v1.Health";
pub(crate) const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";

/// The name under which a plugin tells its health.
pub(crate) const HEALTH_OF_PLUGIN: &str = "plugin";

/// The status of a plugin that is well.
pub(crate) const SERVING: i32 = 1;

/// Descriptors, and the same service under its name of before 2023.
pub(crate) const REFLECTION: &str = "grpc.reflection.v1.ServerReflection";
pub(crate) const REFLECTION_INFO: &str =
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
pub(crate) const REFLECTION_ALPHA: &str = "grpc.reflection.v1alpha.ServerReflection";
pub(crate) const REFLECTION_ALPHA_INFO: &str =
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";

/// More connections, in both directions.
pub(crate) const BROKER: &str = "plugin.GRPCBroker";
pub(crate) const BROKER_STREAM: &str = "/plugin.GRPCBroker/StartStream";

/// The end of a plugin.
pub(crate) const CONTROLLER: &str = "plugin.GRPCController";
pub(crate) const CONTROLLER_SHUTDOWN: &str = "/plugin.GRPCController/Shutdown";

/// What a plugin's code prints.
pub(crate) const STDIO: &str = "plugin.GRPCStdio";
pub(crate) const STDIO_STREAM: &str = "/plugin.GRPCStdio/StreamStdio";

/// The channel of what was printed to the standard output, and to the standard error.
pub(crate) const STDOUT: i32 = 1;
pub(crate) const STDERR: i32 = 2;

/// Services of go-plugin and gRPC themselves, which every plugin may have.
pub(crate) const INFRASTRUCTURE: [&str; 6] =
    [HEALTH, REFLECTION, REFLECTION_ALPHA, BROKER, CONTROLLER, STDIO];

/// Standard base64, as certificates and details of errors are written. Go writes no padding; others
/// may.
pub(crate) static BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The full name of what stands in a package, a message or a service; in none if that is empty.
pub(crate) fn full_name(scope: &str, name: &str) -> String {
    if scope.is_empty() { name.to_owned() } else { format!("{scope}.{name}") }
}

/// `plugin.ConnInfo`: a service that one side serves for the other, or a knock at it.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ConnInfo {
    /// The number of the service, chosen by the side that serves.
    #[prost(uint32, tag = "1")]
    pub(crate) service_id: u32,
    /// `unix` or `tcp`; empty in a knock.
    #[prost(string, tag = "2")]
    pub(crate) network: String,
    #[prost(string, tag = "3")]
    pub(crate) address: String,
    #[prost(message, optional, tag = "4")]
    pub(crate) knock: Option<Knock>,
}

/// `plugin.ConnInfo.Knock`: on a multiplexed connection, "the next stream is for this service".
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Knock {
    #[prost(bool, tag = "1")]
    pub(crate) knock: bool,
    #[prost(bool, tag = "2")]
    pub(crate) ack: bool,
    #[prost(string, tag = "3")]
    pub(crate) error: String,
}

/// `plugin.Empty`, `google.protobuf.Empty`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Empty {}

/// `plugin.StdioData`: what a plugin's code printed after its server took the standard streams.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct StdioData {
    /// [`STDOUT`] or [`STDERR`].
    #[prost(int32, tag = "1")]
    pub(crate) channel: i32,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) data: bytes::Bytes,
}

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct HealthRequest {
    #[prost(string, tag = "1")]
    pub(crate) service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct HealthAnswer {
    /// [`SERVING`], or not.
    #[prost(int32, tag = "1")]
    pub(crate) status: i32,
}

/// `grpc.reflection.v1.ServerReflectionRequest`, the parts that we ask for.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ReflectionRequest {
    #[prost(string, tag = "1")]
    pub(crate) host: String,
    #[prost(oneof = "ReflectionQuestion", tags = "3, 4, 7")]
    pub(crate) question: Option<ReflectionQuestion>,
}

/// The question of a [`ReflectionRequest`].
#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum ReflectionQuestion {
    /// The file with this name.
    #[prost(string, tag = "3")]
    FileByName(String),
    /// The file that describes this symbol.
    #[prost(string, tag = "4")]
    FileOfSymbol(String),
    /// All services; the text is ignored.
    #[prost(string, tag = "7")]
    Services(String),
}

/// `grpc.reflection.v1.ServerReflectionResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ReflectionAnswer {
    #[prost(oneof = "ReflectionFound", tags = "4, 6, 7")]
    pub(crate) found: Option<ReflectionFound>,
}

/// The answer in a [`ReflectionAnswer`].
#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum ReflectionFound {
    #[prost(message, tag = "4")]
    Files(ReflectionFiles),
    #[prost(message, tag = "6")]
    Services(ReflectionServices),
    #[prost(message, tag = "7")]
    Refused(ReflectionRefused),
}

/// `grpc.reflection.v1.FileDescriptorResponse`: files as encoded `FileDescriptorProto`s.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ReflectionFiles {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub(crate) files: Vec<bytes::Bytes>,
}

/// `grpc.reflection.v1.ListServiceResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ReflectionServices {
    #[prost(message, repeated, tag = "1")]
    pub(crate) services: Vec<ReflectionName>,
}

/// `grpc.reflection.v1.ServiceResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ReflectionName {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
}

/// `grpc.reflection.v1.ErrorResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ReflectionRefused {
    #[prost(int32, tag = "1")]
    pub(crate) code: i32,
    #[prost(string, tag = "2")]
    pub(crate) message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_a_service_and_a_method() {
        for (service, method, path) in [
            (HEALTH, "Check", HEALTH_CHECK),
            (REFLECTION, "ServerReflectionInfo", REFLECTION_INFO),
            (REFLECTION_ALPHA, "ServerReflectionInfo", REFLECTION_ALPHA_INFO),
            (BROKER, "StartStream", BROKER_STREAM),
            (CONTROLLER, "Shutdown", CONTROLLER_SHUTDOWN),
            (STDIO, "StreamStdio", STDIO_STREAM),
        ] {
            assert_eq!(path, format!("/{service}/{method}"));
        }
    }

    #[test]
    fn a_name_stands_behind_its_package() {
        assert_eq!(full_name("a.b", "C"), "a.b.C");
        assert_eq!(full_name("", "C"), "C");
    }
}

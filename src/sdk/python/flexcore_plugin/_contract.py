"""The messages of the contract `flexcore.plugin.v1`, and of go-plugin's own services."""

import base64

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from ._descriptors import SETS

SERVICE = "flexcore.plugin.v1.Plugin"
VERSION = 1

# A pool of our own: another library may have messages of the same names.
_POOL = descriptor_pool.DescriptorPool()
for _text in SETS:
    for _file in descriptor_pb2.FileDescriptorSet.FromString(base64.b64decode(_text)).file:
        _POOL.AddSerializedFile(_file.SerializeToString())


def _message(name):
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(name))


DescribeRequest = _message("flexcore.plugin.v1.DescribeRequest")
Description = _message("flexcore.plugin.v1.Description")
ConfigureRequest = _message("flexcore.plugin.v1.ConfigureRequest")
ConfigureResponse = _message("flexcore.plugin.v1.ConfigureResponse")
CallRequest = _message("flexcore.plugin.v1.CallRequest")
CallResponse = _message("flexcore.plugin.v1.CallResponse")
FailureMessage = _message("flexcore.plugin.v1.Failure")
StreamRequest = _message("flexcore.plugin.v1.StreamRequest")
StreamResponse = _message("flexcore.plugin.v1.StreamResponse")
DecideRequest = _message("flexcore.plugin.v1.DecideRequest")
DecideResponse = _message("flexcore.plugin.v1.DecideResponse")
Decision = _message("flexcore.plugin.v1.Decision")
EventMessage = _message("flexcore.plugin.v1.Event")

Nothing = _message("plugin.Nothing")
ConnInfo = _message("plugin.ConnInfo")
StdioData = _message("plugin.StdioData")
HealthCheckRequest = _message("plugin.HealthCheckRequest")
HealthCheckResponse = _message("plugin.HealthCheckResponse")

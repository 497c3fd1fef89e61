// Package shared is what the Go plugin and the Go host of the tests agree on.
package shared

import (
	"context"

	"flexlab/lab"

	plugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
)

// Name is the plugin's name within its set.
const Name = "transform"

// Handshake holds the magic cookie.
var Handshake = plugin.HandshakeConfig{
	ProtocolVersion:  1,
	MagicCookieKey:   "FLEXCORE_PLUGIN",
	MagicCookieValue: "flexcore-lab-7f3a",
}

// Glue registers the service on a plugin's side, and hands a client to a host.
type Glue struct {
	plugin.NetRPCUnsupportedPlugin
	// Serve makes the service; a host leaves it out.
	Serve func(*plugin.GRPCBroker) lab.TransformServer
}

// Client is what a host gets.
type Client struct {
	lab.TransformClient
	Broker *plugin.GRPCBroker
}

// GRPCServer implements plugin.GRPCPlugin.
func (g *Glue) GRPCServer(broker *plugin.GRPCBroker, server *grpc.Server) error {
	lab.RegisterTransformServer(server, g.Serve(broker))
	return nil
}

// GRPCClient implements plugin.GRPCPlugin.
func (g *Glue) GRPCClient(
	_ context.Context, broker *plugin.GRPCBroker, connection *grpc.ClientConn,
) (interface{}, error) {
	return &Client{lab.NewTransformClient(connection), broker}, nil
}

// Versions offers the same set for each version.
func Versions(glue *Glue, versions ...int) map[int]plugin.PluginSet {
	sets := make(map[int]plugin.PluginSet)
	for _, version := range versions {
		sets[version] = plugin.PluginSet{Name: glue}
	}
	return sets
}

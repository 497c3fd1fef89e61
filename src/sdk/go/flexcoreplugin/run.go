package flexcoreplugin

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"flexcoreplugin/pluginv1"

	"github.com/hashicorp/go-hclog"
	plugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/reflection"
)

// What FlexCore and its plugins know each other by.
var handshake = plugin.HandshakeConfig{
	ProtocolVersion:  contractVersion,
	MagicCookieKey:   "FLEXCORE_PLUGIN",
	MagicCookieValue: "294ee746ca7a0ad28a537fa30b00ae93",
}

// The names of services that later versions of go-plugin add by themselves.
const (
	reflectionService = "grpc.reflection.v1alpha.ServerReflection"
	stdioService      = "plugin.GRPCStdio"
)

// Run is a plugin, until its host ends it: what main calls, and nothing after it. Where no host has
// started it, or the plugin is not one, it says so on standard error, and the exit status is 1.
func Run(of Plugin) {
	if err := of.Check(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	running := &running{stderr: os.Stderr, log: newLog(os.Stderr, of.Name)}
	running.served = newServed(of, running.log)
	go running.endAtSignal()
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig:  handshake,
		VersionedPlugins: map[int]plugin.PluginSet{contractVersion: {"flexcore": &glue{running: running}}},
		GRPCServer:       running.server,
		Logger:           hclog.New(&hclog.LoggerOptions{Name: "go-plugin", Level: hclog.Warn, JSONFormat: true}),
	})
}

// running is the process of a plugin.
type running struct {
	served *served
	log    hclog.Logger
	stderr *os.File
	once   sync.Once
	lock   sync.Mutex
	grpc   *grpc.Server
}

// server makes the server. Requests a little beyond their limits are read, so that one that passes
// them is told so.
func (r *running) server(options []grpc.ServerOption) *grpc.Server {
	options = append(options,
		grpc.MaxRecvMsgSize(inputBytesMax+envelopeBytesMax),
		grpc.MaxSendMsgSize(outputBytesMax+envelopeBytesMax),
		grpc.UnaryInterceptor(func(
			ctx context.Context, request interface{}, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler,
		) (interface{}, error) {
			r.once.Do(r.begun)
			return handler(ctx, request)
		}),
		grpc.StreamInterceptor(func(
			server interface{}, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler,
		) error {
			r.once.Do(r.begun)
			return handler(server, stream)
		}),
	)
	made := grpc.NewServer(options...)
	r.lock.Lock()
	r.grpc = made
	r.lock.Unlock()
	return made
}

// begun is called before the first call is answered, when go-plugin has begun as it does. Its version
// 1.0 sends what is printed into pipes that nobody reads, so that the plugin would stop when they are
// full: then it goes to standard error, which is the host's log.
func (r *running) begun() {
	if _, reads := r.grpc.GetServiceInfo()[stdioService]; !reads {
		os.Stdout, os.Stderr = r.stderr, r.stderr
	}
	log.SetFlags(0)
	log.SetOutput(r.log.StandardWriter(&hclog.StandardLoggerOptions{InferLevels: true}))
}

// endAtSignal ends the plugin at SIGTERM, when the calls that are under way have ended, or have had
// their time.
func (r *running) endAtSignal() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	<-signals
	r.lock.Lock()
	server := r.grpc
	r.lock.Unlock()
	if server == nil {
		os.Exit(0)
	}
	time.AfterFunc(drainWait, func() { os.Exit(0) })
	server.GracefulStop()
}

// glue registers the contract's service with go-plugin.
type glue struct {
	plugin.NetRPCUnsupportedPlugin
	running *running
}

// GRPCServer implements plugin.GRPCPlugin.
func (g *glue) GRPCServer(_ *plugin.GRPCBroker, server *grpc.Server) error {
	pluginv1.RegisterPluginServer(server, g.running.served)
	if _, has := server.GetServiceInfo()[reflectionService]; !has {
		reflection.Register(server)
	}
	return nil
}

// GRPCClient implements plugin.GRPCPlugin.
func (g *glue) GRPCClient(
	_ context.Context, _ *plugin.GRPCBroker, connection *grpc.ClientConn,
) (interface{}, error) {
	return pluginv1.NewPluginClient(connection), nil
}

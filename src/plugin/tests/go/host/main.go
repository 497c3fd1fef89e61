// HashiCorp's own host, for plugins on our library: host [-mtls] [-version N] [-cookie C] PLUGIN.
//
// It prints a line for each thing that the plugin did, and ends with status 1 where one failed. With
// -bench it measures calls instead, as bench.go says.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"time"

	"flexlab/lab"
	"flexlab/shared"

	"github.com/hashicorp/go-hclog"
	plugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
)

// Long enough for a busy machine.
const patience = 20 * time.Second

type adder struct{}

func (adder) Add(_ context.Context, request *lab.AddRequest) (*lab.AddResponse, error) {
	return &lab.AddResponse{Sum: request.A + request.B}, nil
}

func unary(ctx context.Context, client *shared.Client) error {
	request := &lab.TransformRequest{Id: "a", Payload: []byte("hello")}
	response, err := client.Apply(ctx, request)
	if err == nil {
		fmt.Printf("unary %s %s\n", response.Id, response.Payload)
	}
	return err
}

func stream(ctx context.Context, client *shared.Client) error {
	calls, err := client.ApplyStream(ctx)
	if err != nil {
		return err
	}
	for count := 0; count < 100; count++ {
		id := fmt.Sprint(count)
		if err := calls.Send(&lab.TransformRequest{Id: id, Payload: []byte("s")}); err != nil {
			return err
		}
		response, err := calls.Recv()
		if err != nil {
			return err
		}
		if response.Id != id || !bytes.Equal(response.Payload, []byte("S")) {
			return fmt.Errorf("asked %s, answered %s %s", id, response.Id, response.Payload)
		}
	}
	fmt.Println("stream 100")
	return calls.CloseSend()
}

func callback(ctx context.Context, client *shared.Client) error {
	id := client.Broker.NextId()
	go client.Broker.AcceptAndServe(id, func(options []grpc.ServerOption) *grpc.Server {
		server := grpc.NewServer(options...)
		lab.RegisterHostAdderServer(server, adder{})
		return server
	})
	response, err := client.Apply(ctx, &lab.TransformRequest{Id: "c", CallbackId: id})
	if err == nil {
		fmt.Printf("callback %s\n", response.Note)
	}
	return err
}

func main() {
	mtls := flag.Bool("mtls", false, "AutoMTLS")
	version := flag.Int("version", 2, "the version that is offered")
	cookie := flag.String("cookie", shared.Handshake.MagicCookieValue, "the cookie's value")
	benches := flag.Bool("bench", false, "measure calls, as standard input asks")
	flag.Parse()
	handshake := shared.Handshake
	handshake.MagicCookieValue = *cookie
	newClient := func(command *exec.Cmd) *plugin.Client {
		return plugin.NewClient(&plugin.ClientConfig{
			HandshakeConfig:  handshake,
			VersionedPlugins: shared.Versions(&shared.Glue{}, *version),
			Cmd:              command,
			AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
			AutoMTLS:         *mtls,
			Logger:           hclog.New(&hclog.LoggerOptions{Output: os.Stderr, Level: hclog.Warn}),
		})
	}
	if *benches {
		if err := bench(flag.Arg(0), newClient); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	client := newClient(exec.Command(flag.Arg(0)))
	err := run(client)
	client.Kill()
	if err != nil {
		fmt.Println("failed", err)
		os.Exit(1)
	}
	fmt.Println("ended", client.Exited())
}

func run(client *plugin.Client) error {
	connection, err := client.Client()
	if err != nil {
		return err
	}
	fmt.Println("version", client.NegotiatedVersion())
	if err := connection.Ping(); err != nil {
		return err
	}
	dispensed, err := connection.Dispense(shared.Name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	transform := dispensed.(*shared.Client)
	for _, step := range []func(context.Context, *shared.Client) error{unary, stream, callback} {
		if err := step(ctx, transform); err != nil {
			return err
		}
	}
	return nil
}

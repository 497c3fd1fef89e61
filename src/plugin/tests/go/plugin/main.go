// A plugin on HashiCorp's own library, for the host under test.
package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"

	"flexlab/lab"
	"flexlab/shared"

	"github.com/hashicorp/go-hclog"
	plugin "github.com/hashicorp/go-plugin"
)

// More than the 4 MiB that gRPC libraries take unless told otherwise.
const bigBytes = 16 << 20

type transform struct {
	broker *plugin.GRPCBroker
	log    hclog.Logger
}

func answer(request *lab.TransformRequest) *lab.TransformResponse {
	return &lab.TransformResponse{Id: request.Id, Payload: bytes.ToUpper(request.Payload)}
}

func (t *transform) Apply(
	ctx context.Context, request *lab.TransformRequest,
) (*lab.TransformResponse, error) {
	switch request.Id {
	case "crash":
		os.Exit(7)
	case "hang":
		select {}
	case "big":
		return &lab.TransformResponse{Id: "big", Payload: bytes.Repeat([]byte("x"), bigBytes)}, nil
	case "log":
		t.log.Info("structured hello", "n", 42)
		// The library has replaced both of them by pipes.
		fmt.Println("hello on plugin stdout")
		fmt.Fprintln(os.Stderr, "hello on plugin stderr")
	case "panic":
		go panic("boom from plugin")
		select {}
	}
	response := answer(request)
	if request.CallbackId != 0 {
		connection, err := t.broker.Dial(request.CallbackId)
		if err != nil {
			return nil, err
		}
		defer connection.Close()
		added, err := lab.NewHostAdderClient(connection).Add(ctx, &lab.AddRequest{A: 40, B: 2})
		if err != nil {
			return nil, err
		}
		response.Note = fmt.Sprintf("host says %d", added.Sum)
	}
	return response, nil
}

func (t *transform) ApplyStream(stream lab.Transform_ApplyStreamServer) error {
	for {
		request, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.Send(answer(request)); err != nil {
			return err
		}
	}
}

func main() {
	log := hclog.New(&hclog.LoggerOptions{
		Name: "transform", Level: hclog.Debug, Output: os.Stderr, JSONFormat: true,
	})
	glue := &shared.Glue{Serve: func(broker *plugin.GRPCBroker) lab.TransformServer {
		return &transform{broker, log}
	}}
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig:  shared.Handshake,
		VersionedPlugins: shared.Versions(glue, 1, 2),
		GRPCServer:       plugin.DefaultGRPCServer,
		Logger:           log,
	})
}

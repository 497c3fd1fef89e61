package flexcoreplugin

import (
	"context"
	"encoding/json"
	"io"
	"time"

	"flexcoreplugin/pluginv1"

	"github.com/golang/protobuf/proto"
	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// served is an author's plugin as the contract has it. What comes in is checked, and what goes out:
// the host never sees the contract broken.
type served struct {
	plugin    Plugin
	functions map[string]*Function
	settings  *settings
	log       hclog.Logger
}

func newServed(plugin Plugin, log hclog.Logger) *served {
	functions := make(map[string]*Function, len(plugin.Functions))
	for at := range plugin.Functions {
		functions[plugin.Functions[at].Name] = &plugin.Functions[at]
	}
	of := &settings{
		by: plugin.Configuration, log: log, of: make(map[string]setting), making: make(map[string]uint64),
	}
	return &served{plugin: plugin, functions: functions, settings: of, log: log}
}

// logger is the log outside of calls of functions.
func (s *served) logger() hclog.Logger {
	return s.log
}

// Describe says what the plugin can do.
func (s *served) Describe(context.Context, *pluginv1.DescribeRequest) (*pluginv1.Description, error) {
	return s.plugin.described(), nil
}

// Configure takes one tenant's configuration.
func (s *served) Configure(
	_ context.Context, request *pluginv1.ConfigureRequest,
) (*pluginv1.ConfigureResponse, error) {
	if err := atMost("a configuration, in bytes,", len(request.Configuration), configurationBytesMax); err != nil {
		return nil, err
	}
	response := &pluginv1.ConfigureResponse{}
	if err := s.settings.set(request.Tenant, request.Configuration); err != nil {
		response.Failure = failureOf(err, s.logger)
	}
	return response, nil
}

// Call calls a function once.
func (s *served) Call(ctx context.Context, request *pluginv1.CallRequest) (*pluginv1.CallResponse, error) {
	if request.Context == nil {
		return nil, withoutContext()
	}
	if err := atMost("an input, in bytes,", len(request.Input), inputBytesMax); err != nil {
		return nil, err
	}
	function := s.functions[request.Function]
	if function == nil {
		return failed(unknown(request.Function)), nil
	}
	ctx, cancel := until(ctx, request.Context)
	defer cancel()
	response := function.answer(ctx, s.calling(request.Context, function.Name), request.Input)
	if ctx.Err() != nil {
		return nil, late(ctx)
	}
	return response, nil
}

// Decide decides on batches of commands, one after the other.
func (s *served) Decide(stream pluginv1.Plugin_DecideServer) error {
	if s.plugin.Decide == nil {
		return status.Error(codes.Unimplemented, "this plugin decides nothing")
	}
	for {
		request, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := checkQuestions(request); err != nil {
			return err
		}
		response := &pluginv1.DecideResponse{Number: request.Number}
		bytes := 0
		for _, question := range request.Questions {
			if stream.Context().Err() != nil {
				return late(stream.Context())
			}
			decision := s.decide(question)
			if bytes += proto.Size(decision); bytes > outputBytesMax {
				decision = undecided(tooMuch())
			}
			response.Decisions = append(response.Decisions, decision)
		}
		if err := stream.Send(response); err != nil {
			return err
		}
	}
}

func checkQuestions(request *pluginv1.DecideRequest) error {
	if err := atMost("a number of questions", len(request.Questions), batchItemsMax); err != nil {
		return err
	}
	bytes := 0
	for _, question := range request.Questions {
		if question.Context == nil {
			return withoutContext()
		}
		bytes += proto.Size(question)
	}
	return atMost("a batch of questions, in bytes,", bytes, inputBytesMax)
}

// answer calls the function. A panic is a failure.
func (f *Function) answer(ctx context.Context, call *Call, input []byte) *pluginv1.CallResponse {
	var output json.RawMessage
	err := caught(call.Log, func() (err error) {
		output, err = f.Run(ctx, call, input)
		return err
	})
	switch {
	case err != nil && ctx.Err() != nil:
		// Nobody waits any more, and the function says so in its own words.
		return failed(FailForNow("late", "the caller's time is over").message())
	case err != nil:
		return failed(failureOf(err, call.Log))
	case len(output) > outputBytesMax:
		return failed(broken("an output of %d bytes; at most %d", len(output), outputBytesMax))
	case !isJSON(output):
		return failed(broken("its output is no JSON"))
	}
	return &pluginv1.CallResponse{Result: &pluginv1.CallResponse_Output{Output: output}}
}

func failed(failure *pluginv1.Failure) *pluginv1.CallResponse {
	return &pluginv1.CallResponse{Result: &pluginv1.CallResponse_Failure{Failure: failure}}
}

func unknown(function string) *pluginv1.Failure {
	return Fail("unknown_function", "there is no function %.100q", function).message()
}

func tooMuch() *pluginv1.Failure {
	return broken("the answers of one batch are too large together")
}

// until is a call's context, which ends when its caller waits no more.
func until(ctx context.Context, of *pluginv1.Context) (context.Context, context.CancelFunc) {
	wait := callWaitMax
	if ms := of.GetTimeoutMs(); ms > 0 && ms < uint64(wait.Milliseconds()) {
		wait = time.Duration(ms) * time.Millisecond
	}
	return context.WithTimeout(ctx, wait)
}

// late is the answer when the caller's time is over; mostly nobody hears it.
func late(ctx context.Context) error {
	if ctx.Err() == context.Canceled {
		return status.Error(codes.Canceled, "the caller has given up")
	}
	return status.Error(codes.DeadlineExceeded, "the caller's time is over")
}

func atMost(what string, size, limit int) error {
	if size <= limit {
		return nil
	}
	return status.Errorf(codes.InvalidArgument, "%s of %d is over the limit of %d", what, size, limit)
}

func withoutContext() error {
	return status.Error(codes.InvalidArgument, "a request has no context")
}

// Package flexcoreplugin is what a plugin of FlexCore in Go is written with: functions that are
// called with JSON, a configuration of each tenant, and a decider of commands.
//
//	func main() {
//		flexcoreplugin.Run(flexcoreplugin.Plugin{
//			Name:    "greeter",
//			Version: "0.1.0",
//			Functions: []flexcoreplugin.Function{
//				{Name: "greet", Idempotent: true, Run: flexcoreplugin.Typed(greet)},
//			},
//		})
//	}
//
//	func greet(_ context.Context, call *flexcoreplugin.Call, input Greeting) (Greeted, error) {
//		if input.Name == "" {
//			return Greeted{}, flexcoreplugin.Fail("no_name", "nobody can be greeted without a name")
//		}
//		call.Log().Info("greeting", "name", input.Name)
//		return Greeted{Text: "Hello, " + input.Name + "!"}, nil
//	}
//
// Standard output is the host's: do not print there. A panic of a function is a failure of its call;
// a panic of a goroutine that it has started ends the plugin, as in any program.
package flexcoreplugin

import (
	"context"
	"encoding/json"
)

// Plugin is what an author says that a plugin is.
type Plugin struct {
	// Name and Version are for people. The manifest's name is the one that counts.
	Name, Version string
	// Summary says in one sentence what it is for.
	Summary string
	// Functions can be called: 256 at most.
	Functions []Function
	// Configuration of each tenant; nil: the plugin takes none.
	Configuration *Configuration
	// Decide decides on commands; nil: the plugin decides nothing.
	//
	// The same question has to have the same answer: no clock, no chance, no effect, and nothing
	// that is kept from one question to the next. An error that is a Rejection says that the rules
	// say no; any other says that the plugin cannot decide.
	Decide func(*Question) ([]Event, error)
}

// Function can be called by its name.
type Function struct {
	// Name is [a-z][a-z0-9_]{0,39}.
	Name string
	// Summary says in one sentence what it does.
	Summary string
	// InputSchema and OutputSchema are JSON Schemas (2020-12); empty: any JSON. SchemaOf makes them of
	// Go's types. The host checks inputs. It shows callers the schema of outputs, and does not check
	// these; flexcoreplugintest does.
	InputSchema, OutputSchema string
	// Idempotent says that the same call again, under the same idempotency key, does nothing that
	// the first did not do. If not, a call of unknown outcome is never repeated.
	Idempotent bool
	// AtOnce is how many calls of one stream are worked on at once; 0: 16.
	AtOnce int
	// Run is the function: Typed makes one of a Go function. An error that is a Failure is told as it
	// is. Any other is logged, and the caller hears that the function failed, and nothing more.
	Run func(ctx context.Context, call *Call, input json.RawMessage) (json.RawMessage, error)
}

// Configuration of a plugin, which each tenant has for itself.
type Configuration struct {
	// Schema is a JSON Schema (2020-12) of it, which the host checks; SchemaOf makes one of a Go type.
	// `"writeOnly": true` marks a secret.
	Schema string
	// Make turns it into what calls use, and has to return soon: Settings and Made give one. Its
	// error is the answer to calls of this tenant, until it is configured otherwise.
	Make func(configuration json.RawMessage) (interface{}, error)
}

// Settings is a configuration that calls take as it is, with Configured.
func Settings[S any](schema string) *Configuration {
	return Made(schema, func(settings S) (S, error) { return settings, nil })
}

// Made is a configuration of which something is made that calls use, such as a pool of connections.
// They take it with Configured.
func Made[S, C any](schema string, from func(S) (C, error)) *Configuration {
	return &Configuration{Schema: schema, Make: func(text json.RawMessage) (interface{}, error) {
		var settings S
		if err := read(text, &settings); err != nil {
			return nil, Fail("bad_configuration", "the configuration %s", err)
		}
		return from(settings)
	}}
}

// Typed makes a function of a plugin from one whose input and output are read and written by
// encoding/json. A call whose input does not fit is answered with the failure invalid_input, and the
// function is not called. Numbers in an interface{} are json.Number, so that large ones stay exact.
func Typed[I, O any](
	function func(ctx context.Context, call *Call, input I) (O, error),
) func(context.Context, *Call, json.RawMessage) (json.RawMessage, error) {
	return func(ctx context.Context, call *Call, text json.RawMessage) (json.RawMessage, error) {
		var input I
		if err := read(text, &input); err != nil {
			return nil, Fail("invalid_input", "the input %s", err)
		}
		output, err := function(ctx, call, input)
		if err != nil {
			return nil, err
		}
		return written("output", output)
	}
}

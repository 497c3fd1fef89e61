// Package flexcoreplugintest runs a plugin in its author's tests: built, started on FlexCore's host as
// FlexCore starts it, called with JSON, and held to its own schemas.
//
//	func TestItGreets(t *testing.T) {
//		plugin := flexcoreplugintest.Start(t)
//		var greeted Greeted
//		if err := plugin.Call("greet", Greeting{Name: "Ada"}, &greeted); err != nil {
//			t.Fatal(err)
//		}
//	}
//
// The host is the executable flexcore: the variable FLEXCORE names it, otherwise it is looked for in PATH.
//
// All of it fails the test where the plugin or the host does what it must not do. A failure that the
// plugin answers with is returned.
package flexcoreplugintest

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"flexcoreplugin"
)

// Longest wait for the host's answer, and for the plugin's end. The host itself waits for 20 s.
const patience = 60 * time.Second

// Running is a plugin that runs, until the end of its test.
type Running struct {
	t    testing.TB
	host *host
}

// Result is what came of one call of a stream.
type Result struct {
	Output json.RawMessage
	Err    error
}

// Event is one that the plugin's decider answered with.
type Event struct {
	Name string          `json:"event"`
	Data json.RawMessage `json:"data"`
}

// Description is what a plugin says that it can do.
type Description struct {
	Name                string          `json:"name"`
	Version             string          `json:"version"`
	Summary             string          `json:"summary"`
	Functions           []Function      `json:"functions"`
	ConfigurationSchema json.RawMessage `json:"configuration_schema"`
	Decides             bool            `json:"decides"`
}

// Function is what a plugin says of one of its functions. A schema is null where any JSON fits.
type Function struct {
	Name         string          `json:"name"`
	Summary      string          `json:"summary"`
	InputSchema  json.RawMessage `json:"input_schema"`
	OutputSchema json.RawMessage `json:"output_schema"`
	Idempotent   bool            `json:"idempotent"`
}

// Start builds the plugin, and starts it. The options are those of `flexcore plugin try`, such as
// "--arg=debug" and "--env=LOG_LEVEL=debug".
func Start(t testing.TB, options ...string) *Running {
	t.Helper()
	return &Running{t: t, host: startHost(t, flexcore(t), Build(t), options)}
}

// Question is one to the host, as `flexcore plugin try --help` has it: "do", and what belongs to it.
type Question map[string]interface{}

// Ask asks the host, for what this package has no words for, such as a call for another tenant. It
// returns the answer, which has no "error".
func (r *Running) Ask(question Question) map[string]json.RawMessage {
	r.t.Helper()
	line := r.host.ask(r.t, written(r.t, question))
	var answer map[string]json.RawMessage
	if err := json.Unmarshal(line, &answer); err != nil {
		r.t.Fatalf("the host answers %q", line)
	}
	if why, wrong := answer["error"]; wrong {
		r.t.Fatalf("%s: %s\n%s", question["do"], why, r.host.said.text())
	}
	return answer
}

// Describe is what the plugin says that it can do.
func (r *Running) Describe() Description {
	r.t.Helper()
	var description Description
	read(r.t, r.Ask(Question{"do": "describe"})["description"], &description)
	return description
}

// Configure configures the tenant of the calls that follow; nil takes the configuration away. The error
// is the plugin's: a *flexcoreplugin.Failure.
func (r *Running) Configure(configuration interface{}) error {
	r.t.Helper()
	return r.failure(r.Ask(Question{"do": "configure", "configuration": configuration}))
}

// Call calls a function, and reads its output into a value; nil: it is left out. The error is the
// plugin's: a *flexcoreplugin.Failure.
func (r *Running) Call(function string, input, output interface{}) error {
	r.t.Helper()
	answer := r.Ask(Question{"do": "call", "function": function, "input": input})
	if err := r.failure(answer); err != nil || output == nil {
		return err
	}
	read(r.t, answer["output"], output)
	return nil
}

// Stream calls a function for each input, on one stream. The results are in the order of the inputs.
func (r *Running) Stream(function string, inputs ...interface{}) []Result {
	r.t.Helper()
	answer := r.Ask(Question{"do": "stream", "function": function, "inputs": inputs})
	var answers []map[string]json.RawMessage
	read(r.t, answer["results"], &answers)
	if len(answers) != len(inputs) {
		r.t.Fatalf("%d inputs have %d results", len(inputs), len(answers))
	}
	results := make([]Result, len(answers))
	for at, answer := range answers {
		results[at] = Result{Output: answer["output"], Err: r.failure(answer)}
	}
	return results
}

// Decide asks for a decision on a command of an aggregate with this state; nil: before its first event.
// The error is the plugin's: a *flexcoreplugin.Rejection, or a *flexcoreplugin.Failure. The host asks
// twice: the same question has to have the same answer.
func (r *Running) Decide(command string, state, payload interface{}) ([]Event, error) {
	r.t.Helper()
	question := Question{"do": "decide", "command": command, "state": state, "payload": payload}
	answer := r.Ask(question)
	if why, rejected := answer["rejected"]; rejected {
		return nil, &flexcoreplugin.Rejection{Failure: *failed(r.t, why)}
	}
	if err := r.failure(answer); err != nil {
		return nil, err
	}
	events := []Event{}
	read(r.t, answer["events"], &events)
	return events, nil
}

// UntilLogged waits for a line of the plugin's log with this text, and returns it as the host prints it.
func (r *Running) UntilLogged(part string) string {
	r.t.Helper()
	for ends := time.Now().Add(patience / 3); time.Now().Before(ends); time.Sleep(10 * time.Millisecond) {
		for _, line := range strings.Split(r.host.said.text(), "\n") {
			if strings.Contains(line, part) {
				return line
			}
		}
	}
	r.t.Fatalf("the plugin does not log %q, but:\n%s", part, r.host.said.text())
	return ""
}

// failure is the plugin's in an answer; nil: there is none.
func (r *Running) failure(answer map[string]json.RawMessage) error {
	r.t.Helper()
	why, is := answer["failure"]
	if !is {
		return nil
	}
	return failed(r.t, why)
}

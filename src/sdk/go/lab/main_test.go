package main

import (
	"encoding/json"
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"flexcoreplugin"
	"flexcoreplugin/flexcoreplugintest"
)

// refused is the failure that an error has to be.
func refused(t *testing.T, err error, code string) *flexcoreplugin.Failure {
	t.Helper()
	var failure *flexcoreplugin.Failure
	if !errors.As(err, &failure) || failure.Code != code {
		t.Fatalf("%v is not %s", err, code)
	}
	return failure
}

func TestItConforms(t *testing.T) {
	flexcoreplugintest.Conforms(t)
}

func TestJSONGoesInAndOut(t *testing.T) {
	plugin := flexcoreplugintest.Start(t)
	input := json.RawMessage(`{"a":[1,9007199254740991,"é<&>"]}`)
	var output json.RawMessage
	if err := plugin.Call("echo", input, &output); err != nil || string(output) != string(input) {
		t.Fatalf("%s, %v", output, err)
	}
	description := plugin.Describe()
	if first := description.Functions[0]; !description.Decides || first.Name != "echo" || !first.Idempotent {
		t.Fatalf("%+v", description)
	}
}

func TestFailuresSayWhatTheyAre(t *testing.T) {
	plugin := flexcoreplugintest.Start(t)
	failure := refused(t, plugin.Call("fail", failing{Code: "busy", PauseMs: 1500}, nil), "busy")
	if !failure.Temporary || failure.RetryAfter != 1500*time.Millisecond {
		t.Errorf("%+v", failure)
	}
	if details, _ := failure.Details.(json.RawMessage); string(details) != `{"why":"a test"}` {
		t.Errorf("%s", details)
	}
	if refused(t, plugin.Call("fail", failing{Code: "gone"}, nil), "gone").Temporary {
		t.Error("it is for good")
	}
	refused(t, plugin.Call("fail", failing{Code: "Not A Code"}, nil), "broken_answer")
	refused(t, plugin.Call("raw", nil, nil), "broken_answer")
	refused(t, plugin.Call("large", 16<<20, nil), "broken_answer")
	refused(t, plugin.Call("nothing", nil, nil), "unknown_function")
	refused(t, plugin.Call("sleep", "no number", nil), "invalid_input")
	refused(t, plugin.Call("nil", true, nil), "internal")
	refused(t, plugin.Call("nil", false, nil), "internal")
	refused(t, plugin.Call("details", nil, nil), "panicked")
	other := refused(t, plugin.Call("error", nil, nil), "internal")
	if strings.Contains(other.Message, "s3cr3t") {
		t.Error("the text of an error may have anything in it")
	}
	plugin.UntilLogged("s3cr3t")
}

func TestPanicsAreFailuresAndLines(t *testing.T) {
	plugin := flexcoreplugintest.Start(t)
	for count := 0; count < 3; count++ {
		refused(t, plugin.Call("panic", nil, nil), "panicked")
	}
	line := plugin.UntilLogged("as asked")
	if !strings.Contains(line, "error: ") || !strings.Contains(line, `"function":"panic"`) {
		t.Error(line)
	}
	for _, result := range plugin.Stream("panic", 1, 2) {
		refused(t, result.Err, "panicked")
	}
	if err := plugin.Call("echo", 1, nil); err != nil {
		t.Error(err)
	}
}

func TestTheLogHasLevelsAndFieldsAndShortLines(t *testing.T) {
	plugin := flexcoreplugintest.Start(t)
	if err := plugin.Call("log", nil, nil); err != nil {
		t.Fatal(err)
	}
	if line := plugin.UntilLogged("one"); !strings.Contains(line, "warning: ") {
		t.Error(line)
	}
	line := plugin.UntilLogged("two")
	for _, part := range []string{`"count":3`, `"tenant":"test"`, `"idempotency_key":`} {
		if !strings.Contains(line, part) {
			t.Errorf("no %s in %s", part, line)
		}
	}
	if line := plugin.UntilLogged("without"); len(line) > 1000 {
		t.Errorf("a line of %d bytes", len(line))
	}
	if line := plugin.UntilLogged("standard library"); !strings.Contains(line, "warning: ") {
		t.Error(line)
	}
}

// Version 1.0 of go-plugin would stop the plugin: it sends what is printed into a pipe that nobody reads.
func TestPrintingDoesNotStopIt(t *testing.T) {
	plugin := flexcoreplugintest.Start(t)
	for count := 0; count < 3; count++ {
		if err := plugin.Call("print", nil, nil); err != nil {
			t.Fatal(err)
		}
	}
}

func TestEachTenantHasItsConfiguration(t *testing.T) {
	plugin := flexcoreplugintest.Start(t)
	refused(t, plugin.Call("settings", nil, nil), "not_configured")
	var output string
	for _, url := range []string{"a", "b"} {
		if err := plugin.Configure(configuration{URL: "https://" + url}); err != nil {
			t.Fatal(err)
		}
		if err := plugin.Call("settings", nil, &output); err != nil || output != url {
			t.Fatalf("%s, %v", output, err)
		}
	}
	refused(t, plugin.Configure(configuration{URL: "http://c"}), "no_https")
	refused(t, plugin.Call("settings", nil, nil), "no_https")
	other := plugin.Ask(flexcoreplugintest.Question{"do": "call", "function": "settings", "input": nil, "tenant": "acme"})
	if !strings.Contains(string(other["failure"]), "not_configured") {
		t.Errorf("%s", other)
	}
	of := map[string]interface{}{"url": 5, "password": "s3cr3t"}
	secret := refused(t, plugin.Configure(of), "bad_configuration")
	if strings.Contains(secret.Message, "s3cr3t") {
		t.Error(secret)
	}
	if err := plugin.Configure(nil); err != nil {
		t.Fatal(err)
	}
	refused(t, plugin.Call("settings", nil, nil), "not_configured")
}

func TestManyCallsGoOnOneStream(t *testing.T) {
	plugin := flexcoreplugintest.Start(t)
	inputs := make([]interface{}, 1000)
	for at := range inputs {
		inputs[at] = at
	}
	var most int64
	for _, result := range plugin.Stream("busy", inputs[:200]...) {
		if err := json.Unmarshal(result.Output, &most); err != nil || most > 4 {
			t.Fatalf("%s, %v", result.Output, result.Err)
		}
	}
	if most < 2 {
		t.Error("calls of a stream are worked on at once")
	}
	for at, result := range plugin.Stream("echo", inputs...) {
		if text, _ := json.Marshal(at); string(result.Output) != string(text) {
			t.Fatalf("%d: %s, %v", at, result.Output, result.Err)
		}
	}
	keys := make(map[string]bool)
	for _, result := range plugin.Stream("about", nil, nil) {
		keys[string(result.Output)] = true
	}
	if len(keys) != 2 {
		t.Error("each call has a key of its own")
	}
	refused(t, plugin.Stream("nothing", 1, 2)[1].Err, "unknown_function")
}

func TestADeciderAcceptsRejectsAndFails(t *testing.T) {
	plugin := flexcoreplugintest.Start(t)
	if events, err := plugin.Decide("nothing", 1, nil); err != nil || len(events) != 0 {
		t.Errorf("%v, %v", events, err)
	}
	if events, err := plugin.Decide("add", nil, 10); err != nil || string(events[0].Data) != `{"by":10}` {
		t.Errorf("%v, %v", events, err)
	}
	_, err := plugin.Decide("add", 9, 2)
	var rejection *flexcoreplugin.Rejection
	if !errors.As(err, &rejection) || rejection.Code != "too_many" {
		t.Errorf("%v", err)
	}
	for _, of := range []struct {
		command string
		state   interface{}
		code    string
	}{
		{"panic", 1, "panicked"}, {"explode", 1, "panicked"}, {"refuse", 1, "panicked"}, {"nil", 1, "internal"},
		{"add", "x", "invalid_question"}, {"remove", 1, "unknown_command"},
	} {
		_, err := plugin.Decide(of.command, of.state, 1)
		if errors.As(err, &rejection) {
			t.Errorf("%s is rejected", of.command)
		}
		refused(t, err, of.code)
	}
}

func TestOneThatCannotBeDescribedDoesNotStart(t *testing.T) {
	command := exec.Command(flexcoreplugintest.Build(t), "broken")
	said, err := command.CombinedOutput()
	if err == nil || !strings.Contains(string(said), `two functions called "echo"`) {
		t.Errorf("%v: %s", err, said)
	}
}

type part struct {
	Name     string  `json:"name" description:"Its name."`
	Parts    []part  `json:"parts,omitempty"`
	Above    *part   `json:"above"`
	Password string  `json:"password,omitempty" secret:"true"`
	Size     uint16  `json:"size"`
	Weight   float64 `json:"weight,string"`
	hidden   int
	Left     int `json:"-"`
}

type whole struct {
	part
	Name  int              `json:"name"`
	When  time.Time        `json:"when"`
	Any   interface{}      `json:"any"`
	Names map[string]bool  `json:"names"`
	Two   [2]int           `json:"two"`
	Raw   *json.RawMessage `json:"raw"`
	Bytes []byte           `json:"bytes"`
}

func TestASchemaIsThatOfItsType(t *testing.T) {
	for _, of := range []struct{ made, expected string }{
		{flexcoreplugin.SchemaOf[*int](), `{"anyOf":[{"type":"integer"},{"type":"null"}]}`},
		{flexcoreplugin.SchemaOf[failing](), `{"properties":{"code":{"type":"string"},"pause_ms":` +
			`{"type":"integer"}},"required":["code","pause_ms"],"type":"object"}`},
		{flexcoreplugin.SchemaOf[part](), `{"$defs":{"part1":{"properties":{"above":{"anyOf":[` +
			`{"$ref":"#/$defs/part1"},{"type":"null"}]},"name":{"description":"Its name.","type":"string"},` +
			`"parts":{"items":{"$ref":"#/$defs/part1"},"type":["array","null"]},"password":` +
			`{"type":"string","writeOnly":true},"size":{"minimum":0,"type":"integer"},"weight":` +
			`{"type":"string"}},"required":["name","size","weight"],"type":"object"}},"$ref":"#/$defs/part1"}`},
	} {
		if of.made != of.expected {
			t.Errorf("%s", of.made)
		}
	}
	var schema struct {
		Properties map[string]json.RawMessage
		Required   []string
	}
	if err := json.Unmarshal([]byte(flexcoreplugin.SchemaOf[whole]()), &schema); err != nil {
		t.Fatal(err)
	}
	for name, expected := range map[string]string{
		"name":  `{"type":"integer"}`,
		"when":  `{"format":"date-time","type":"string"}`,
		"any":   `{}`,
		"names": `{"additionalProperties":{"type":"boolean"},"type":["object","null"]}`,
		"two":   `{"items":{"type":"integer"},"maxItems":2,"minItems":2,"type":"array"}`,
		"raw":   `{"anyOf":[{},{"type":"null"}]}`,
		"bytes": `{"type":["string","null"]}`,
		"size":  `{"minimum":0,"type":"integer"}`,
	} {
		if made := string(schema.Properties[name]); made != expected {
			t.Errorf("%s: %s", name, made)
		}
	}
	if count := strings.Count(strings.Join(schema.Required, " "), "name"); count != 2 {
		t.Errorf("name and names: %v", schema.Required)
	}
}

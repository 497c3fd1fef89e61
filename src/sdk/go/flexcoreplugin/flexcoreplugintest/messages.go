package flexcoreplugintest

import (
	"encoding/json"
	"testing"
	"time"

	"flexcoreplugin"
)

// failed is a failure as the plugin's code made it. Its details are a json.RawMessage.
func failed(t testing.TB, why json.RawMessage) *flexcoreplugin.Failure {
	t.Helper()
	var told struct {
		Code         string          `json:"code"`
		Message      string          `json:"message"`
		Temporary    bool            `json:"temporary"`
		RetryAfterMs int64           `json:"retry_after_ms"`
		Details      json.RawMessage `json:"details"`
	}
	read(t, why, &told)
	failure := &flexcoreplugin.Failure{
		Code: told.Code, Message: told.Message, Temporary: told.Temporary,
		RetryAfter: time.Duration(told.RetryAfterMs) * time.Millisecond,
	}
	if told.Details != nil {
		failure.Details = told.Details
	}
	return failure
}

func written(t testing.TB, value interface{}) []byte {
	t.Helper()
	written, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return written
}

func read(t testing.TB, from json.RawMessage, into interface{}) {
	t.Helper()
	if err := json.Unmarshal(from, into); err != nil {
		t.Fatalf("%s: %v", from, err)
	}
}

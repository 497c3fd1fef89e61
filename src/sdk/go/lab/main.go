// A plugin for tests of flexcoreplugin. With the argument "broken" it has two functions of one name.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"flexcoreplugin"
)

func main() {
	plugin := flexcoreplugin.Plugin{
		Name:          "lab",
		Version:       "1.0.0",
		Summary:       "For tests.",
		Configuration: flexcoreplugin.Made(`{"type": "object"}`, made),
		Functions: []flexcoreplugin.Function{
			{Name: "echo", Summary: "As it came.", Idempotent: true, Run: flexcoreplugin.Typed(echo)},
			{Name: "about", Run: flexcoreplugin.Typed(about)},
			{Name: "settings", Run: flexcoreplugin.Typed(settings)},
			{Name: "sleep", Run: flexcoreplugin.Typed(sleep)},
			{Name: "busy", AtOnce: 4, Run: flexcoreplugin.Typed(busy)},
			{Name: "panic", Run: flexcoreplugin.Typed(panics)},
			{Name: "fail", Run: flexcoreplugin.Typed(fail)},
			{Name: "error", Run: flexcoreplugin.Typed(failsOtherwise)},
			{Name: "nil", Run: flexcoreplugin.Typed(failsWithNil)},
			{Name: "details", Run: flexcoreplugin.Typed(failsWithDetails)},
			{Name: "log", Run: flexcoreplugin.Typed(logs)},
			{Name: "print", Run: flexcoreplugin.Typed(prints)},
			{Name: "raw", Run: raw},
			{Name: "large", Run: flexcoreplugin.Typed(large)},
			{Name: "wrong", OutputSchema: `{"type": "integer"}`, Run: flexcoreplugin.Typed(wrong)},
			{Name: "small", InputSchema: `{"maximum": 9}`, Run: flexcoreplugin.Typed(echo)},
		},
		Decide: decide,
	}
	if len(os.Args) > 1 && os.Args[1] == "broken" {
		plugin.Functions = append(plugin.Functions, plugin.Functions[0])
	}
	flexcoreplugin.Run(plugin)
}

type configuration struct {
	URL    string `json:"url"`
	WaitMs int    `json:"wait_ms"`
}

// host is what calls use of the configuration.
type host string

func made(of configuration) (host, error) {
	time.Sleep(time.Duration(of.WaitMs) * time.Millisecond)
	if !strings.HasPrefix(of.URL, "https://") {
		return "", flexcoreplugin.Fail("no_https", "only https is allowed")
	}
	return host(strings.TrimPrefix(of.URL, "https://")), nil
}

func settings(_ context.Context, call *flexcoreplugin.Call, _ interface{}) (host, error) {
	return flexcoreplugin.Configured[host](call)
}

func echo(_ context.Context, _ *flexcoreplugin.Call, input interface{}) (interface{}, error) {
	return input, nil
}

func about(ctx context.Context, call *flexcoreplugin.Call, _ interface{}) (interface{}, error) {
	ends, _ := ctx.Deadline()
	return map[string]interface{}{
		"tenant":       call.Tenant,
		"actor":        call.Actor,
		"key":          call.IdempotencyKey,
		"trace":        call.Traceparent,
		"remaining_ms": time.Until(ends).Milliseconds(),
	}, nil
}

// Milliseconds.
func sleep(ctx context.Context, call *flexcoreplugin.Call, ms int) (interface{}, error) {
	defer call.Log().Info("sleep has ended")
	call.Log().Info("sleep has begun")
	select {
	case <-time.After(time.Duration(ms) * time.Millisecond):
		return nil, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

var now, most int64

// The most calls that were under way at once.
func busy(context.Context, *flexcoreplugin.Call, interface{}) (int64, error) {
	here := atomic.AddInt64(&now, 1)
	defer atomic.AddInt64(&now, -1)
	for seen := atomic.LoadInt64(&most); here > seen; seen = atomic.LoadInt64(&most) {
		atomic.CompareAndSwapInt64(&most, seen, here)
	}
	time.Sleep(2 * time.Millisecond)
	return atomic.LoadInt64(&most), nil
}

func panics(context.Context, *flexcoreplugin.Call, interface{}) (interface{}, error) {
	panic("as asked")
}

type failing struct {
	Code    string `json:"code"`
	PauseMs int    `json:"pause_ms"`
}

func fail(_ context.Context, _ *flexcoreplugin.Call, as failing) (interface{}, error) {
	failure := flexcoreplugin.Fail(as.Code, "as asked").With(map[string]string{"why": "a test"})
	if as.PauseMs > 0 {
		failure.After(time.Duration(as.PauseMs) * time.Millisecond)
	}
	// However deep it is in another error.
	return nil, fmt.Errorf("outside: %w", failure)
}

func failsOtherwise(context.Context, *flexcoreplugin.Call, interface{}) (interface{}, error) {
	return nil, errors.New("s3cr3t")
}

// An error that is a nil pointer, as is easily made.
func failsWithNil(_ context.Context, _ *flexcoreplugin.Call, rejects bool) (interface{}, error) {
	if rejects {
		var rejection *flexcoreplugin.Rejection
		return nil, rejection
	}
	var failure *flexcoreplugin.Failure
	return nil, failure
}

// explosive panics when it is written.
type explosive struct{}

func (explosive) MarshalJSON() ([]byte, error) {
	panic("as asked, when it is written")
}

func failsWithDetails(context.Context, *flexcoreplugin.Call, interface{}) (interface{}, error) {
	return nil, flexcoreplugin.Fail("gone", "as asked").With(explosive{})
}

func logs(_ context.Context, call *flexcoreplugin.Call, _ interface{}) (interface{}, error) {
	call.Log().Warn("one\ntwo", "count", 3, "name", "x")
	call.Log().Debug("too much")
	call.Log().Info("without", "long", strings.Repeat("é", 100_000))
	log.Print("[WARN] by the standard library")
	return nil, nil
}

// More than a pipe holds.
func prints(context.Context, *flexcoreplugin.Call, interface{}) (interface{}, error) {
	for line := 0; line < 20_000; line++ {
		fmt.Println("printed by the plugin")
	}
	return nil, nil
}

func raw(_ context.Context, _ *flexcoreplugin.Call, input json.RawMessage) (json.RawMessage, error) {
	return json.RawMessage(`{"no": "JSON`), nil
}

// Bytes.
func large(_ context.Context, _ *flexcoreplugin.Call, bytes int) (string, error) {
	return strings.Repeat("x", bytes), nil
}

func wrong(context.Context, *flexcoreplugin.Call, interface{}) (string, error) {
	return "no integer", nil
}

// A counter up to ten.
func decide(question *flexcoreplugin.Question) ([]flexcoreplugin.Event, error) {
	var count, by int
	if _, err := question.State(&count); err != nil {
		return nil, err
	}
	switch question.Command {
	case "add":
		if err := question.Payload(&by); err != nil {
			return nil, err
		}
		if count+by > 10 {
			return nil, flexcoreplugin.Reject("too_many", "ten at most")
		}
		return []flexcoreplugin.Event{{Name: "added", Data: map[string]int{"by": by}}}, nil
	case "nothing":
		return nil, nil
	case "panic":
		panic("as asked")
	case "explode":
		return []flexcoreplugin.Event{{Name: "exploded", Data: explosive{}}}, nil
	case "refuse":
		return nil, flexcoreplugin.Reject("no", "as asked").With(explosive{})
	case "nil":
		var rejection *flexcoreplugin.Rejection
		return nil, rejection
	}
	return nil, flexcoreplugin.Fail("unknown_command", "%s", question.Command)
}

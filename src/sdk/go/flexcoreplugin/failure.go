package flexcoreplugin

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"flexcoreplugin/pluginv1"

	"github.com/hashicorp/go-hclog"
)

// Failure is why something was not done.
type Failure struct {
	// Code is a stable word for programs, such as not_found: [a-z][a-z0-9_]{0,39}.
	Code string
	// Message is a sentence for people. No secrets: it is logged and recorded. 4 KiB at most.
	Message string
	// Temporary says that the same may succeed later: an outage, a full disk, a rate limit.
	Temporary bool
	// RetryAfter says, of a temporary failure, that it will not pass before. In milliseconds on the
	// wire; what is less is cut off.
	RetryAfter time.Duration
	// Details has more for programs; nil: none. JSON of 64 KiB at most.
	Details interface{}
}

// Error is the code and the message.
func (f *Failure) Error() string {
	if f == nil {
		return "a failure that is nil"
	}
	return f.Code + ": " + f.Message
}

// Fail is a failure for good: trying again is in vain.
func Fail(code, format string, of ...interface{}) *Failure {
	return &Failure{Code: code, Message: fmt.Sprintf(format, of...)}
}

// FailForNow is a failure that passes.
func FailForNow(code, format string, of ...interface{}) *Failure {
	return &Failure{Code: code, Message: fmt.Sprintf(format, of...), Temporary: true}
}

// After says that a failure passes, but not before this time.
func (f *Failure) After(pause time.Duration) *Failure {
	f.Temporary, f.RetryAfter = true, pause
	return f
}

// With adds details for programs.
func (f *Failure) With(details interface{}) *Failure {
	f.Details = details
	return f
}

// Rejection says of a command that the rules say no, for good.
type Rejection struct {
	Failure
}

// Reject is a decision against a command.
func Reject(code, format string, of ...interface{}) *Rejection {
	return &Rejection{*Fail(code, format, of...)}
}

// Error is the code and the message.
func (r *Rejection) Error() string {
	if r == nil {
		return "a rejection that is nil"
	}
	return r.Failure.Error()
}

// With adds details for programs.
func (r *Rejection) With(details interface{}) *Rejection {
	r.Details = details
	return r
}

// Unwrap is the rejection as a failure, which it is where nothing is decided.
func (r *Rejection) Unwrap() error {
	if r == nil {
		return (*Failure)(nil)
	}
	return &r.Failure
}

// failureOf is what a caller hears of an error. The text of an error that is no Failure may have
// anything in it, so that the log alone has it. Errors and details are an author's code, too, and may panic.
func failureOf(err error, log func() hclog.Logger) *pluginv1.Failure {
	var told *pluginv1.Failure
	panicked := caught(log, func() error {
		told = failureNow(err, log)
		return nil
	})
	if panicked != nil {
		return Fail("panicked", "the plugin's error panicked; its log says where").message()
	}
	return told
}

func failureNow(err error, log func() hclog.Logger) *pluginv1.Failure {
	var failure *Failure
	if errors.As(err, &failure) && failure != nil {
		return failure.message()
	}
	log().Error("the function failed", "error", err.Error())
	return Fail("internal", "the function failed; the plugin's log says why").message()
}

// broken is said in place of an answer that the contract does not allow.
func broken(format string, of ...interface{}) *pluginv1.Failure {
	what := fmt.Sprintf(format, of...)
	return Fail("broken_answer", "the plugin broke the contract: %s", what).message()
}

// message is the failure as the contract has it, or what breaks the contract in its place.
func (f *Failure) message() *pluginv1.Failure {
	if !isWord(f.Code) {
		return broken("%.80q is no code of a failure ([a-z][a-z0-9_]{0,39})", f.Code)
	}
	var details []byte
	if f.Details != nil {
		text, err := written("details", f.Details)
		if err != nil {
			return broken("the details of %s are no JSON", f.Code)
		}
		if len(text) > detailsBytesMax {
			return broken("the details of %s have %d bytes; at most %d", f.Code, len(text), detailsBytesMax)
		}
		details = text
	}
	message := &pluginv1.Failure{Code: f.Code, Message: cut(f.Message, messageBytesMax), Details: details}
	if pause := f.RetryAfter.Milliseconds(); f.Temporary {
		message.Temporary = true
		if pause > 0 {
			message.RetryAfterMs = uint64(pause)
		}
	}
	return message
}

// cut shortens a text to so many bytes, between characters. What is no UTF-8 is replaced.
func cut(text string, bytesMax int) string {
	text = strings.ToValidUTF8(text, "\uFFFD")
	if len(text) <= bytesMax {
		return text
	}
	end := bytesMax - len("…")
	for end > 0 && !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + "…"
}

// isJSON says whether a text is JSON in UTF-8.
func isJSON(text []byte) bool {
	return utf8.Valid(text) && json.Valid(text)
}

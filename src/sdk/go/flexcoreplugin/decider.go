package flexcoreplugin

import (
	"encoding/json"
	"errors"
	"unicode/utf8"

	"flexcoreplugin/pluginv1"
)

// Question is a command that waits for its decision, and the aggregate before it.
type Question struct {
	// Aggregate and ID say which aggregate it is, and Tenant whose.
	Aggregate, ID, Tenant string
	// Version of the aggregate before the command; 0 before its first event.
	Version uint64
	// Command is its name, and CommandID its id.
	Command, CommandID string
	// Actor is who sent it, as recorded.
	Actor string
	// NowMs is when the command was taken up, in milliseconds since 1970-01-01 UTC: the only clock of
	// a decision.
	NowMs int64

	state, payload json.RawMessage
}

// NewQuestion is a question for tests: the state and the payload are written as JSON. A nil state is
// that of an aggregate before its first event.
func NewQuestion(command string, state, payload interface{}) (*Question, error) {
	before, err := written("state", state)
	if err != nil {
		return nil, err
	}
	says, err := written("payload", payload)
	if err != nil {
		return nil, err
	}
	return &Question{Command: command, state: before, payload: says}, nil
}

// State reads the aggregate's state into a value, and says whether there is one: before the first
// event there is none, and the value stays as it is.
func (q *Question) State(into interface{}) (bool, error) {
	if string(q.state) == "null" {
		return false, nil
	}
	return true, q.read("state", q.state, into)
}

// Payload reads what the command says into a value.
func (q *Question) Payload(into interface{}) error {
	return q.read("payload", q.payload, into)
}

func (q *Question) read(what string, text json.RawMessage, into interface{}) error {
	if err := read(text, into); err != nil {
		return Fail("invalid_question", "the %s %s", what, err)
	}
	return nil
}

// Event is something that happened.
type Event struct {
	// Name of the event, as the aggregate declares it.
	Name string
	// Data is written as JSON, and has to fit the event's schema.
	Data interface{}
}

// decide decides on one question. A panic is the failure of this one.
func (s *served) decide(asked *pluginv1.Question) *pluginv1.Decision {
	context := asked.GetContext()
	question := &Question{
		Aggregate: asked.Aggregate, ID: asked.Id, Tenant: context.GetTenant(),
		Version: asked.Version, Command: asked.Command, CommandID: asked.CommandId,
		Actor: context.GetActor(), NowMs: asked.NowMs,
		state: asked.State, payload: asked.Payload,
	}
	var decision *pluginv1.Decision
	err := caught(s.logger, func() error {
		events, err := s.plugin.Decide(question)
		var rejection *Rejection
		switch {
		case err == nil:
			decision = accepted(events)
		case errors.As(err, &rejection) && rejection != nil:
			decision = rejected(rejection)
		default:
			return err
		}
		return nil
	})
	if err != nil {
		return undecided(failureOf(err, s.logger))
	}
	return decision
}

func accepted(events []Event) *pluginv1.Decision {
	if len(events) > eventsMax {
		return undecided(broken("%d events; at most %d", len(events), eventsMax))
	}
	messages := make([]*pluginv1.Event, 0, len(events))
	for _, event := range events {
		if event.Name == "" || len(event.Name) > eventNameBytesMax || !utf8.ValidString(event.Name) {
			return undecided(broken("the name of an event has %d bytes, or is no UTF-8", len(event.Name)))
		}
		data, err := written("event", event.Data)
		if err != nil {
			return undecided(Fail("invalid_event", "%s is no JSON", event.Name).message())
		}
		messages = append(messages, &pluginv1.Event{Event: event.Name, Data: data})
	}
	return &pluginv1.Decision{Result: &pluginv1.Decision_Events{Events: &pluginv1.Events{Events: messages}}}
}

// rejected tells what the rules refuse: for good.
func rejected(rejection *Rejection) *pluginv1.Decision {
	why := rejection.Failure
	why.Temporary = false
	message := why.message()
	if message.Code != why.Code {
		return undecided(message)
	}
	return &pluginv1.Decision{Result: &pluginv1.Decision_Rejected{Rejected: message}}
}

func undecided(failure *pluginv1.Failure) *pluginv1.Decision {
	return &pluginv1.Decision{Result: &pluginv1.Decision_Failure{Failure: failure}}
}

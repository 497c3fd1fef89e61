package flexcoreplugin

import (
	"fmt"
	"sync"
	"time"

	"flexcoreplugin/pluginv1"

	"github.com/hashicorp/go-hclog"
)

// Call is on whose behalf a function is called. How long the caller waits is the context's deadline;
// when nobody waits any more, the context is done.
type Call struct {
	// Tenant is whose data it is. Never mix what you keep for two tenants.
	Tenant string
	// Actor is who caused it, as recorded.
	Actor string
	// IdempotencyKey is the same for every attempt of this call, and no other call has it.
	IdempotencyKey string
	// Traceparent and Tracestate are W3C Trace Context, for requests that are made for this call;
	// empty: none.
	Traceparent, Tracestate string

	function string
	log      hclog.Logger
	settings *settings
	lock     sync.Mutex
	told     time.Time
}

// Log is FlexCore's log. What is logged has the call's function, tenant and keys as fields.
func (c *Call) Log() hclog.Logger {
	if c.log == nil {
		return hclog.NewNullLogger()
	}
	fields := []interface{}{"function", c.function, "tenant", c.Tenant}
	if c.IdempotencyKey != "" {
		fields = append(fields, "idempotency_key", c.IdempotencyKey)
	}
	if c.Traceparent != "" {
		fields = append(fields, "traceparent", c.Traceparent)
	}
	return c.log.With(fields...)
}

// Progress logs how far the call is, once a second at most.
func (c *Call) Progress(done, of uint64) {
	c.lock.Lock()
	defer c.lock.Unlock()
	if now := time.Now(); done >= of || now.Sub(c.told) >= progressPause {
		c.told = now
		c.Log().Info("progress", "done", done, "of", of)
	}
}

// Configured is the tenant's configuration, as Plugin.Configuration makes it. Fails where there is
// none, where it cannot be used, and where it is of another type. A later configuration does not
// change what a call has.
func Configured[C any](call *Call) (C, error) {
	var none C
	if call.settings == nil {
		return none, notConfigured()
	}
	made, err := call.settings.get(call.Tenant)
	if err != nil {
		return none, err
	}
	of, is := made.(C)
	if !is {
		return none, Fail("not_configured", "the plugin's configuration is no %T", none)
	}
	return of, nil
}

// calling is a call as a message begins it.
func (s *served) calling(context *pluginv1.Context, function string) *Call {
	return &Call{
		Tenant:         context.GetTenant(),
		Actor:          context.GetActor(),
		IdempotencyKey: context.GetIdempotencyKey(),
		Traceparent:    context.GetTraceparent(),
		Tracestate:     context.GetTracestate(),
		function:       function,
		log:            s.log,
		settings:       s.settings,
	}
}

// of is the same for one of many calls of a stream, under a key of its own.
func (c *Call) of(batch uint64, index int) *Call {
	one := &Call{
		Tenant:         c.Tenant,
		Actor:          c.Actor,
		IdempotencyKey: c.IdempotencyKey,
		Traceparent:    c.Traceparent,
		Tracestate:     c.Tracestate,
		function:       c.function,
		log:            c.log,
		settings:       c.settings,
	}
	if one.IdempotencyKey != "" {
		one.IdempotencyKey = fmt.Sprintf("%s:%d:%d", c.IdempotencyKey, batch, index)
	}
	return one
}

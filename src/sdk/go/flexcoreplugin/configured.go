package flexcoreplugin

import (
	"bytes"
	"errors"
	"sync"

	"github.com/hashicorp/go-hclog"
)

// settings are the configurations of all tenants: in memory alone. One that cannot be used is kept as
// the reason.
type settings struct {
	by   *Configuration
	log  hclog.Logger
	lock sync.RWMutex
	of   map[string]setting
	// The last one of each tenant that is being made, by its number: an older one comes too late.
	making map[string]uint64
	number uint64
}

type setting struct {
	made interface{}
	err  error
}

// set takes a tenant's configuration, in place of the former, which may still be in the making. Fails
// where it cannot be used; calls of the tenant then fail with the same.
func (s *settings) set(tenant string, text []byte) error {
	isNull := string(bytes.TrimSpace(text)) == "null"
	if s.by == nil {
		if isNull {
			return nil
		}
		return Fail("no_configuration", "this plugin takes no configuration")
	}
	if isNull {
		s.lock.Lock()
		defer s.lock.Unlock()
		delete(s.making, tenant)
		delete(s.of, tenant)
		return nil
	}
	s.lock.Lock()
	s.number++
	number := s.number
	s.making[tenant] = number
	s.lock.Unlock()
	// Outside of the lock: it is the author's code.
	var one setting
	one.err = caught(func() hclog.Logger { return s.log }, func() error {
		made, err := s.by.Make(text)
		if err != nil {
			return s.reason(err)
		}
		one.made = made
		return nil
	})
	s.lock.Lock()
	defer s.lock.Unlock()
	if s.making[tenant] != number {
		return FailForNow("overtaken", "a later configuration of this tenant has taken its place")
	}
	delete(s.making, tenant)
	if _, known := s.of[tenant]; !known && len(s.of) >= tenantsMax {
		return FailForNow("too_many_tenants", "too many tenants are configured")
	}
	s.of[tenant] = one
	return one.err
}

// reason is what callers hear of an error, which may quote a secret unless it is a Failure. Not even
// the log has it.
func (s *settings) reason(err error) error {
	var failure *Failure
	if errors.As(err, &failure) && failure != nil {
		return failure
	}
	return Fail("bad_configuration", "the plugin cannot work with this configuration")
}

func (s *settings) get(tenant string) (interface{}, error) {
	s.lock.RLock()
	defer s.lock.RUnlock()
	one, known := s.of[tenant]
	if !known {
		return nil, notConfigured()
	}
	return one.made, one.err
}

func notConfigured() error {
	return Fail("not_configured", "the plugin is not configured")
}

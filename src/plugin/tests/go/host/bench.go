package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"sort"
	"strings"
	"sync"
	"time"

	"flexlab/lab"
	"flexlab/shared"

	plugin "github.com/hashicorp/go-plugin"
)

// running is a plugin that has answered its first call.
type running struct {
	client  *plugin.Client
	process *os.Process
	service *shared.Client
}

// sampled is what one measurement of a rate saw.
type sampled struct {
	Calls   int     `json:"calls"`
	Seconds float64 `json:"seconds"`
	P50Us   float64 `json:"p50_us"`
	P99Us   float64 `json:"p99_us"`
}

// bench measures what it is asked for on standard input, until that is closed, and answers each line
// with one of JSON:
//
//	calls IN_FLIGHT MILLISECONDS BYTES   calls of so many bytes, of one plugin
//	start BYTES                          a plugin of its own, from its start until its first answer
//
// The first line that it prints has the process of the plugin that is called.
func bench(file string, newClient func(*exec.Cmd) *plugin.Client) error {
	// A terminal sends it to all; the one who asks closes standard input, and then no plugin is left.
	signal.Ignore(os.Interrupt)
	called, err := begin(file, newClient, 1)
	if err != nil {
		return err
	}
	defer called.client.Kill()
	answers := json.NewEncoder(os.Stdout)
	if err := answers.Encode(map[string]int{"plugin": called.process.Pid}); err != nil {
		return err
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		answer, err := measure(lines.Text(), called, func(size int) (*running, error) {
			return begin(file, newClient, size)
		})
		if err != nil {
			return err
		}
		if err := answers.Encode(answer); err != nil {
			return err
		}
	}
	return lines.Err()
}

func measure(
	line string, called *running, start func(size int) (*running, error),
) (interface{}, error) {
	var inFlight, milliseconds, size int
	if _, err := fmt.Sscanf(line, "calls %d %d %d", &inFlight, &milliseconds, &size); err == nil {
		return calls(called.service, inFlight, time.Duration(milliseconds)*time.Millisecond, size)
	}
	if _, err := fmt.Sscanf(line, "start %d", &size); err != nil {
		return nil, fmt.Errorf("%q is no question: %v", line, err)
	}
	began := time.Now()
	started, err := start(size)
	if err != nil {
		return nil, err
	}
	took := time.Since(began)
	started.client.Kill()
	return map[string]float64{"start_us": float64(took.Nanoseconds()) / 1e3}, nil
}

func begin(file string, newClient func(*exec.Cmd) *plugin.Client, size int) (*running, error) {
	command := exec.Command(file)
	client := newClient(command)
	connection, err := client.Client()
	if err != nil {
		client.Kill()
		return nil, err
	}
	dispensed, err := connection.Dispense(shared.Name)
	if err != nil {
		client.Kill()
		return nil, err
	}
	service := dispensed.(*shared.Client)
	if err := call(service, payload(size)); err != nil {
		client.Kill()
		return nil, err
	}
	return &running{client, command.Process, service}, nil
}

func payload(size int) []byte {
	return []byte(strings.Repeat("a", size))
}

func call(service *shared.Client, payload []byte) error {
	request := &lab.TransformRequest{Id: "bench", Payload: payload}
	response, err := service.Apply(context.Background(), request)
	if err == nil && len(response.Payload) != len(payload) {
		err = fmt.Errorf("asked with %d bytes, answered with %d", len(payload), len(response.Payload))
	}
	return err
}

// calls is made by so many callers at once, each with one call after the other.
func calls(
	service *shared.Client, inFlight int, lasting time.Duration, size int,
) (*sampled, error) {
	latencies := make([][]time.Duration, inFlight)
	failures := make([]error, inFlight)
	bytes := payload(size)
	began := time.Now()
	ends := began.Add(lasting)
	var callers sync.WaitGroup
	for caller := 0; caller < inFlight; caller++ {
		callers.Add(1)
		go func(caller int) {
			defer callers.Done()
			var seen []time.Duration
			for sent := time.Now(); sent.Before(ends); {
				if failures[caller] = call(service, bytes); failures[caller] != nil {
					break
				}
				answered := time.Now()
				seen = append(seen, answered.Sub(sent))
				sent = answered
			}
			latencies[caller] = seen
		}(caller)
	}
	callers.Wait()
	took := time.Since(began)
	var all []time.Duration
	for caller := range latencies {
		if failures[caller] != nil {
			return nil, failures[caller]
		}
		all = append(all, latencies[caller]...)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no call was answered in %v", lasting)
	}
	sort.Slice(all, func(one, other int) bool { return all[one] < all[other] })
	below := func(percent int) float64 {
		return float64(all[len(all)*percent/100].Nanoseconds()) / 1e3
	}
	return &sampled{len(all), took.Seconds(), below(50), below(99)}, nil
}

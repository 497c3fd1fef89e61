package flexcoreplugintest

import (
	"bufio"
	"io"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// host is `flexcore plugin try`: a line of JSON for each question, and one for each answer.
type host struct {
	questions io.WriteCloser
	answers   chan []byte
	said      *text
}

// startHost starts FlexCore's host with a plugin. At the end of the test both end, as they have to.
func startHost(t testing.TB, flexcore, plugin string, options []string) *host {
	t.Helper()
	command := exec.Command(flexcore, append([]string{"plugin", "try", plugin}, options...)...)
	questions, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	printed, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	h := &host{questions: questions, answers: make(chan []byte), said: &text{}}
	command.Stderr = h.said
	if err := command.Start(); err != nil {
		t.Fatalf("%s: %v", flexcore, err)
	}
	stop := make(chan struct{})
	read := make(chan struct{})
	go func() {
		defer close(read)
		h.read(printed, stop)
	}()
	t.Cleanup(func() {
		close(stop)
		h.questions.Close()
		late := time.AfterFunc(patience, func() { _ = command.Process.Kill() })
		defer late.Stop()
		// A pipe has to be read to its end before the process is waited for.
		<-read
		if err := command.Wait(); err != nil {
			t.Errorf("flexcore plugin try: %v\n%s", err, h.said.text())
		}
	})
	return h
}

// read hands on line after line, until the host ends.
func (h *host) read(printed io.Reader, stop chan struct{}) {
	defer close(h.answers)
	lines := bufio.NewReader(printed)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		select {
		case h.answers <- line:
		case <-stop:
		}
	}
}

func (h *host) ask(t testing.TB, question []byte) []byte {
	t.Helper()
	if _, err := h.questions.Write(append(question, '\n')); err != nil {
		t.Fatalf("the host has ended: %v\n%s", err, h.said.text())
	}
	select {
	case answer, is := <-h.answers:
		if !is {
			t.Fatalf("the host has ended\n%s", h.said.text())
		}
		return answer
	case <-time.After(patience):
		t.Fatalf("no answer within %s\n%s", patience, h.said.text())
	}
	return nil
}

// text is what has been written so far.
type text struct {
	lock sync.Mutex
	all  strings.Builder
}

// Write takes a piece.
func (s *text) Write(piece []byte) (int, error) {
	s.lock.Lock()
	defer s.lock.Unlock()
	return s.all.Write(piece)
}

func (s *text) text() string {
	s.lock.Lock()
	defer s.lock.Unlock()
	return s.all.String()
}

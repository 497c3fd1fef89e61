package flexcoreplugin

import (
	"encoding/json"
	"io"
	"os"

	"github.com/hashicorp/go-hclog"
)

// levelVariable says from which level on is logged: trace, debug, info, warn or error.
const levelVariable = "LOG_LEVEL"

// newLog is the log on standard error, a JSON object a line, as hosts of go-plugin read it: what is at
// least info unless the environment says otherwise.
func newLog(to io.Writer, name string) hclog.Logger {
	level := hclog.LevelFromString(os.Getenv(levelVariable))
	if level == hclog.NoLevel {
		level = hclog.Info
	}
	return hclog.New(&hclog.LoggerOptions{Name: name, Level: level, Output: shortLines{to}, JSONFormat: true})
}

// shortLines leaves the fields of a line out that is too long for a host, and cuts its text.
type shortLines struct {
	to io.Writer
}

// Write writes one line.
func (s shortLines) Write(line []byte) (int, error) {
	if len(line) <= lineBytesMax {
		return s.to.Write(line)
	}
	var fields map[string]json.RawMessage
	if json.Unmarshal(line, &fields) != nil {
		// No line of JSON: the host takes it in pieces.
		return s.to.Write(line)
	}
	short := make(map[string]string)
	for _, key := range []string{"@level", "@message", "@module", "@timestamp"} {
		var text string
		if json.Unmarshal(fields[key], &text) == nil {
			short[key] = cut(text, textBytesMax)
		}
	}
	text, err := written("line", short)
	if err != nil {
		return 0, err
	}
	if _, err := s.to.Write(append(text, '\n')); err != nil {
		return 0, err
	}
	return len(line), nil
}

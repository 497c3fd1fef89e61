package flexcoreplugin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// read reads JSON into a value. Its error says what is wrong and where, to stand behind "the input ";
// it does not quote the text, which does not belong into a log.
func read(text []byte, value interface{}) error {
	if !isJSON(text) {
		var syntax *json.SyntaxError
		if err := json.Unmarshal(text, new(json.RawMessage)); errors.As(err, &syntax) {
			return fmt.Errorf("is no JSON at byte %d", syntax.Offset)
		}
		return errors.New("is no JSON")
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	err := decoder.Decode(value)
	var kind *json.UnmarshalTypeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &kind):
		return fmt.Errorf("does not fit at byte %d", kind.Offset)
	default:
		return errors.New("does not fit")
	}
}

// written is a value as JSON.
func written(what string, value interface{}) (json.RawMessage, error) {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return nil, Fail("invalid_"+what, "the %s is no JSON: its type cannot be written", what)
	}
	return bytes.TrimSuffix(text.Bytes(), []byte("\n")), nil
}

// isWord is true for [a-z][a-z0-9_]{0,39}: names of functions, and codes of failures.
func isWord(text string) bool {
	if text == "" || len(text) > wordBytesMax || text[0] < 'a' || text[0] > 'z' {
		return false
	}
	return strings.Trim(text, "abcdefghijklmnopqrstuvwxyz0123456789_") == ""
}

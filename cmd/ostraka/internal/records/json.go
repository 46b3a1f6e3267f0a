package records

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// jsonDecoder reads JSON lines.
type jsonDecoder struct {
	// key and value are the members to take; empty: the usual ones.
	key, value string
}

func newJSONDecoder(o ReadOptions) jsonDecoder {
	return jsonDecoder{key: o.KeyColumn, value: o.ValueColumn}
}

func (d jsonDecoder) decode(line []byte, _ *lineReader) (Record, error) {
	line = content(line)
	// encoding/json puts U+FFFD in the place of bytes that are not UTF-8: a key would silently become another.
	if !utf8.Valid(line) {
		return Record{}, fmt.Errorf("%w: not UTF-8", ErrSyntax)
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(line, &members); err != nil {
		return Record{}, fmt.Errorf("%w: %w", ErrSyntax, err)
	}
	var r Record
	var err error
	if r.Key, err = d.part(line, members, d.key, nameKey, nameKeyBase64); err != nil {
		return Record{}, err
	}
	if r.Value, err = d.part(line, members, d.value, nameValue, nameValueBase64); err != nil {
		return Record{}, err
	}
	if ttl, ok := members[nameTTL]; ok && d.key == "" && d.value == "" && !isNull(ttl) {
		if r.TTL, err = parseTTL(string(ttl)); err != nil {
			return Record{}, err
		}
	}
	return r, nil
}

// part returns the member that was asked for, or one of the two usual ones.
func (d jsonDecoder) part(line []byte, members map[string]json.RawMessage, asked, plain, coded string) ([]byte, error) {
	if asked == "0" {
		return bytes.Clone(line), nil
	}
	if asked != "" {
		plain, coded = asked, ""
	}
	text, hasText := members[plain]
	code, hasCode := members[coded]
	hasText, hasCode = hasText && !isNull(text), hasCode && coded != "" && !isNull(code)
	switch {
	case hasText && hasCode:
		return nil, fmt.Errorf("%w: %q and %q", ErrContradicted, plain, coded)
	case hasText:
		s, err := textOf(text)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", plain, err)
		}
		return []byte(s), nil
	case hasCode:
		s, err := textOf(code)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", coded, err)
		}
		decoded, err := decodeBase64(s)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", coded, err)
		}
		return decoded, nil
	}
	return nil, fmt.Errorf("%w: %q", ErrMissing, plain)
}

func isNull(m json.RawMessage) bool { return string(m) == "null" }

var errSurrogate = errors.New(`half of a surrogate pair in a \u escape`)

// textOf is a string's text, and the JSON text of anything else: numbers stay as they are written.
func textOf(m json.RawMessage) (string, error) {
	if m[0] != '"' {
		return string(m), nil
	}
	var s string
	if err := json.Unmarshal(m, &s); err != nil {
		return "", fmt.Errorf("%w: %w", ErrSyntax, err)
	}
	// A lone surrogate becomes U+FFFD without a word. Where the text has that character by its own right, it is
	// spelled out.
	if strings.ContainsRune(s, utf8.RuneError) && !spellsReplacement(m) {
		return "", fmt.Errorf("%w: %w", ErrSyntax, errSurrogate)
	}
	return s, nil
}

func spellsReplacement(m json.RawMessage) bool {
	return bytes.ContainsRune(m, utf8.RuneError) || bytes.Contains(bytes.ToLower(m), []byte(`\ufffd`))
}

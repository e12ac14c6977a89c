package jwks

import (
	"encoding/json"
	"fmt"
	"time"
)

// ConfigMap is the name of the object, in the namespace of the control plane, that holds the records: one under the Name of
// each source.
const ConfigMap = "istio-jwks"

// stored is the form of a record.
type stored struct {
	Source  string          `json:"source"`
	Fetched *time.Time      `json:"fetched,omitempty"`
	Error   string          `json:"error,omitempty"`
	JWKS    json.RawMessage `json:"jwks,omitempty"`
}

// Encode returns the key and the value under which a record is stored.
func Encode(r Record) (key, value string) {
	s := stored{Source: r.Source, Error: r.Error}
	if r.Keys != "" {
		at := r.Fetched.UTC()
		s.JWKS, s.Fetched = json.RawMessage(r.Keys), &at
	}
	out, err := marshal(s)
	if err != nil {
		panic("encode keys: " + err.Error()) // Keys is not what ParseKeys returned
	}
	return Name(r.Source), out
}

// Size is about how much is stored of a record, in bytes.
func Size(r Record) int {
	if r.Keys == "" && r.Error == "" {
		return 0
	}
	const frame = 110           // names of fields, the time, the key
	text, _ := marshal(r.Error) // a string always marshals
	return len(r.Source) + len(r.Keys) + len(text) + frame
}

// Decode reads a record back. It returns an error when it is not what Encode makes: keys of one source must never count for
// another.
func Decode(key, value string) (Record, error) {
	var s stored
	if err := json.Unmarshal([]byte(value), &s); err != nil {
		return Record{}, fmt.Errorf("read record: %w", err)
	}
	if key != Name(s.Source) {
		return Record{}, fmt.Errorf("read record: source %q does not belong to the key", s.Source)
	}
	r := Record{Source: s.Source, Error: s.Error}
	if len(s.JWKS) == 0 {
		return r, nil
	}
	keys, err := ParseKeys(s.JWKS)
	if err != nil {
		return Record{}, fmt.Errorf("read record of %s: jwks: %w", s.Source, err)
	}
	if s.Fetched == nil {
		return Record{}, fmt.Errorf("read record of %s: fetched: missing", s.Source)
	}
	r.Keys, r.Fetched = keys, s.Fetched.UTC()
	return r, nil
}

package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/undermesh/undermesh/cni/wire"
)

// errForeign is returned for a file that is no CNI configuration.
var errForeign = errors.New("not a CNI configuration")

// Entry is what our plugin reads from a conflist.
type Entry struct {
	Type              string   `json:"type"`
	Socket            string   `json:"socket,omitempty"`
	Digest            string   `json:"digest,omitempty"`
	ExcludeNamespaces []string `json:"excludeNamespaces,omitempty"`
	LogFile           string   `json:"logFile,omitempty"`
}

// appendEntry returns data with entry as the last plugin. Everything else keeps its bytes, so that removing the entry
// gives back what was there. A conf of one plugin becomes a conflist. An entry of ours that differs is replaced.
func appendEntry(data []byte, entry Entry) ([]byte, error) {
	raw, err := json.Marshal(entry)
	if err != nil {
		return nil, fmt.Errorf("encode plugin entry: %w", err)
	}
	list, err := parse(data)
	if err != nil {
		return nil, err
	}
	if list.plugins == nil {
		return convert(data, raw)
	}
	if i := list.ours(); i >= 0 {
		if sameJSON(list.plugins[i].raw, raw) && i == len(list.plugins)-1 {
			return data, nil
		}
		if data, err = removeEntry(data); err != nil {
			return nil, err
		}
		return appendEntry(data, entry)
	}
	if len(list.plugins) == 0 {
		return nil, fmt.Errorf("conflist has no plugin to chain to: %w", errForeign)
	}
	end := list.plugins[len(list.plugins)-1].end
	return bytes.Join([][]byte{data[:end], []byte(","), raw, data[end:]}, nil), nil
}

// removeEntry returns data without our entry, the rest byte for byte.
func removeEntry(data []byte) ([]byte, error) {
	for {
		list, err := parse(data)
		if err != nil {
			return nil, err
		}
		i := list.ours()
		if i < 0 {
			return data, nil
		}
		from, to := list.plugins[i].start, list.plugins[i].end
		switch {
		case i > 0: // the comma before it goes too
			from = list.plugins[i-1].end + bytes.LastIndexByte(data[list.plugins[i-1].end:from], ',')
		case len(list.plugins) > 1:
			to = list.plugins[1].start
		}
		data = bytes.Join([][]byte{data[:from], data[to:]}, nil)
	}
}

// hasEntry reports whether our plugin is in the conflist.
func hasEntry(data []byte) bool {
	list, err := parse(data)
	return err == nil && list.ours() >= 0
}

// element is one plugin with the place of its bytes.
type element struct {
	typ        string
	raw        []byte
	start, end int
}

type conflist struct{ plugins []element } // nil: a conf of one plugin

func (l conflist) ours() int {
	for i, p := range l.plugins {
		if p.typ == wire.PluginType {
			return i
		}
	}
	return -1
}

// parse finds the elements of the top-level "plugins" array without losing their places.
func parse(data []byte) (conflist, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return conflist{}, fmt.Errorf("want a JSON object: %w", errForeign)
	}
	var list conflist
	single := false
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return conflist{}, fmt.Errorf("%w: %w", errForeign, err)
		}
		switch key {
		case "plugins":
			if list.plugins != nil {
				return conflist{}, fmt.Errorf("two plugins fields: %w", errForeign)
			}
			if list.plugins, err = parsePlugins(d, data); err != nil {
				return conflist{}, err
			}
		default:
			var skip json.RawMessage
			if err := d.Decode(&skip); err != nil {
				return conflist{}, fmt.Errorf("%w: %w", errForeign, err)
			}
			single = single || key == "type"
		}
	}
	if _, err := d.Token(); err != nil {
		return conflist{}, fmt.Errorf("%w: %w", errForeign, err)
	}
	if rest := bytes.TrimSpace(data[d.InputOffset():]); len(rest) > 0 {
		return conflist{}, fmt.Errorf("bytes after the object: %w", errForeign)
	}
	if list.plugins == nil && !single {
		return conflist{}, fmt.Errorf("neither plugins nor type: %w", errForeign)
	}
	return list, nil
}

func parsePlugins(d *json.Decoder, data []byte) ([]element, error) {
	if t, err := d.Token(); err != nil || t != json.Delim('[') {
		return nil, fmt.Errorf("field plugins is not a list: %w", errForeign)
	}
	out := []element{}
	for d.More() {
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return nil, fmt.Errorf("field plugins: %w: %w", errForeign, err)
		}
		end := int(d.InputOffset())
		var p struct {
			Type string `json:"type"`
		}
		if err := json.Unmarshal(raw, &p); err != nil {
			return nil, fmt.Errorf("field plugins[%d]: %w: %w", len(out), errForeign, err)
		}
		out = append(out, element{typ: p.Type, raw: raw, start: end - len(raw), end: end})
	}
	if _, err := d.Token(); err != nil {
		return nil, fmt.Errorf("field plugins: %w: %w", errForeign, err)
	}
	return out, nil
}

// convert makes a conflist of a conf: the plugin keeps its bytes, name and version move up.
func convert(conf, ours []byte) ([]byte, error) {
	var head struct {
		CNIVersion string `json:"cniVersion"`
		Name       string `json:"name"`
	}
	if err := json.Unmarshal(conf, &head); err != nil {
		return nil, fmt.Errorf("%w: %w", errForeign, err)
	}
	if head.Name == "" {
		return nil, fmt.Errorf("conf has no name: %w", errForeign)
	}
	if head.CNIVersion == "" {
		head.CNIVersion = "0.2.0" // what an absent field means
	}
	top, err := json.Marshal(head)
	if err != nil {
		return nil, fmt.Errorf("encode conflist: %w", err)
	}
	return []byte(strings.TrimSuffix(string(top), "}") + `,"plugins":[` + string(bytes.TrimSpace(conf)) + "," + string(ours) + "]}\n"), nil
}

func sameJSON(a, b []byte) bool {
	var ca, cb bytes.Buffer
	return json.Compact(&ca, a) == nil && json.Compact(&cb, b) == nil && bytes.Equal(ca.Bytes(), cb.Bytes())
}

package route

import (
	"errors"
	"fmt"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// ops are the header operations of one level: fields are removed, then replaced, then added.
type ops struct {
	remove []name
	add    []addition
}

type addition struct {
	name   name
	action core.HeaderValueOption_HeaderAppendAction
	value  format
	empty  bool // add it even without a value
}

func (o *ops) none() bool { return len(o.remove) == 0 && len(o.add) == 0 }

type operated interface {
	GetRequestHeadersToAdd() []*core.HeaderValueOption
	GetRequestHeadersToRemove() []string
	GetResponseHeadersToAdd() []*core.HeaderValueOption
	GetResponseHeadersToRemove() []string
}

func newHeaderOps(m operated) (request, response ops, err error) {
	if request, err = newOps(m.GetRequestHeadersToAdd(), m.GetRequestHeadersToRemove(), false); err != nil {
		return request, response, fmt.Errorf("request_headers_to_%w", err)
	}
	if response, err = newOps(m.GetResponseHeadersToAdd(), m.GetResponseHeadersToRemove(), true); err != nil {
		return request, response, fmt.Errorf("response_headers_to_%w", err)
	}
	return request, response, nil
}

func newOps(add []*core.HeaderValueOption, remove []string, response bool) (ops, error) {
	var o ops
	for i, s := range remove {
		n, err := changeable(s)
		if err != nil {
			return o, fmt.Errorf("remove[%d]: %w", i, err)
		}
		o.remove = append(o.remove, n)
	}
	for i, h := range add {
		a, err := newAddition(h, response)
		if err != nil {
			return o, fmt.Errorf("add[%d]: %w", i, err)
		}
		o.add = append(o.add, a)
	}
	return o, nil
}

// changeable names a field that operations may change.
func changeable(s string) (name, error) {
	n, err := newName(s, false)
	if err == nil && n.id == head.Host {
		err = errors.New("host cannot be changed by header operations; rewrite it")
	}
	if err == nil && api.Framing(n.text) {
		err = fmt.Errorf("%s says how the message is carried, which operations cannot change", n.text)
	}
	for i := 0; i < len(s) && err == nil; i++ {
		if !token(s[i]) {
			err = fmt.Errorf("%q is no name of a header field", s)
		}
	}
	return n, err
}

// token reports whether c may be in a field's name (RFC 9110, 5.6.2).
func token(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

func newAddition(h *core.HeaderValueOption, response bool) (addition, error) {
	var a addition
	if err := only(h, "header", "append", "append_action", "keep_empty_value"); err != nil {
		return a, err
	}
	if err := only(h.GetHeader(), "key", "value", "raw_value"); err != nil {
		return a, fmt.Errorf("header: %w", err)
	}
	var err error
	if a.name, err = changeable(h.GetHeader().GetKey()); err != nil {
		return a, fmt.Errorf("header.key: %w", err)
	}
	text := h.GetHeader().GetValue()
	if raw := h.GetHeader().GetRawValue(); len(raw) > 0 {
		if text != "" {
			return a, errors.New("header: has value and raw_value")
		}
		text = string(raw)
	}
	if a.value, err = newFormat(text, response); err != nil {
		return a, fmt.Errorf("header.value: %w", err)
	}
	a.action, a.empty = h.GetAppendAction(), h.GetKeepEmptyValue()
	if h.GetAppend() != nil {
		if a.action != core.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD {
			return a, errors.New("append and append_action are both set")
		}
		if !h.GetAppend().GetValue() {
			a.action = core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD
		}
	}
	if a.action < core.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD || a.action > core.HeaderValueOption_OVERWRITE_IF_EXISTS {
		return a, fmt.Errorf("append_action: %d is not known", a.action)
	}
	return a, nil
}

// apply changes the fields of a message. As in Envoy all values are made before anything but the removals is done; for that
// they are kept in in.scratch, one after the other. What is too long is not done at all, and in.Excess says so.
func (o *ops) apply(f *head.Fields, in *Input) {
	for i := range o.remove {
		f.Del(o.remove[i].id, o.remove[i].text)
	}
	if len(o.add) == 0 {
		return
	}
	var few [8]span
	spans := few[:0]
	in.scratch = in.scratch[:0]
	for i := range o.add {
		a := &o.add[i]
		from := len(in.scratch)
		if in.scratch = a.value.append(in.scratch, in); in.Excess != "" {
			return
		}
		s := span{from: from, to: len(in.scratch), does: len(in.scratch) > from || a.empty}
		switch a.action {
		case core.HeaderValueOption_ADD_IF_ABSENT:
			s.does = s.does && f.Next(0, a.name.id, a.name.text) < 0
		case core.HeaderValueOption_OVERWRITE_IF_EXISTS:
			s.does = s.does && f.Next(0, a.name.id, a.name.text) >= 0
		}
		spans = append(spans, s)
	}
	for i := range o.add {
		if a, s := &o.add[i], spans[i]; s.does && a.overwrites() {
			f.Set(a.name.id, a.name.text, in.scratch[s.from:s.to])
		}
	}
	for i := range o.add {
		if a, s := &o.add[i], spans[i]; s.does && !a.overwrites() {
			f.Add(a.name.id, a.name.text, in.scratch[s.from:s.to])
		}
	}
}

type span struct {
	from, to int
	does     bool
}

func (a *addition) overwrites() bool {
	return a.action == core.HeaderValueOption_OVERWRITE_IF_EXISTS || a.action == core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD
}

// levels are the operations of one direction, in the order in which they are done.
func levels(r *Route, chosen *weighted, response bool, out *[4]*ops) []*ops {
	list := append(out[:0], &r.request, &r.Host.request, &r.Host.config.request)
	if response {
		list = append(out[:0], &r.say, &r.Host.say, &r.Host.config.say)
	}
	if r.Host.config.specificWins {
		list[0], list[2] = list[2], list[0]
	}
	if chosen == nil {
		return list
	}
	own := &chosen.request
	if response {
		own = &chosen.say
	}
	list = append(list, nil)
	copy(list[1:], list)
	list[0] = own
	return list
}

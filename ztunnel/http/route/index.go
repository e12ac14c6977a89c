package route

import (
	"slices"
	"strings"

	"github.com/undermesh/undermesh/ztunnel/http/head"
)

const (
	indexFrom = 8  // routes from which on a tree is made
	maxLists  = 24 // lists of candidates that are merged; a path that has more is matched one route after the other
)

// index finds the routes that a path may match. It is a radix tree of what the paths of each route begin with: the candidates
// of a request are on the way that its path goes, and are tried in the order of the configuration.
type index struct {
	root  *node
	total int
}

// node is for the paths that begin with the labels from the root to here.
type node struct {
	label    string
	routes   []int32 // in order: those that ask for no more than this
	children []*node // by the first byte of the label, which differs
}

func newIndex(routes []*Route) index {
	x := index{total: len(routes)}
	if len(routes) < indexFrom {
		return x
	}
	x.root = &node{}
	for i, r := range routes {
		x.root.insert(r.match.literal(), int32(i))
	}
	return x
}

func (n *node) insert(rest string, route int32) {
	for rest != "" {
		i, ok := n.find(rest[0])
		if !ok {
			n.children = slices.Insert(n.children, i, &node{label: rest, routes: []int32{route}})
			return
		}
		child := n.children[i]
		same := 0
		for same < len(rest) && same < len(child.label) && rest[same] == child.label[same] {
			same++
		}
		if same < len(child.label) { // split
			upper := &node{label: child.label[:same], children: []*node{child}}
			child.label = child.label[same:]
			n.children[i], child = upper, upper
		}
		n, rest = child, rest[same:]
	}
	n.routes = append(n.routes, route)
}

// find returns the child whose label begins with c, or where it would be.
func (n *node) find(c byte) (int, bool) {
	lo, hi := 0, len(n.children)
	for lo < hi {
		mid := (lo + hi) / 2
		if n.children[mid].label[0] < c {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo, lo < len(n.children) && n.children[lo].label[0] == c
}

// lists collects the candidates of a path; ok is false when there are more lists than fit.
func (x *index) lists(path []byte, out *[maxLists][]int32) (count int, ok bool) {
	for n := x.root; n != nil; {
		if len(n.routes) > 0 {
			if count == maxLists {
				return 0, false
			}
			out[count] = n.routes
			count++
		}
		if len(path) == 0 {
			break
		}
		i, found := n.find(path[0])
		if !found {
			break
		}
		child := n.children[i]
		if len(path) < len(child.label) || string(path[:len(child.label)]) != child.label {
			break
		}
		path, n = path[len(child.label):], child
	}
	return count, true
}

// Match returns the first route that the request matches, or nil; nil also when in.Excess is set then. It allocates nothing.
func (v *VirtualHost) Match(req *head.Request, in *Input) *Route {
	path := v.compared(req, in)
	if v.index.root == nil {
		return v.inOrder(req, path, in)
	}
	var lists [maxLists][]int32
	count, ok := v.index.lists(path, &lists)
	if !ok {
		return v.inOrder(req, path, in)
	}
	for {
		best := -1
		for i := range count {
			if len(lists[i]) > 0 && (best < 0 || lists[i][0] < lists[best][0]) {
				best = i
			}
		}
		if best < 0 {
			return nil
		}
		r := v.Routes[lists[best][0]]
		if r.match.matches(req, path, in) {
			return in.affordable(r)
		}
		lists[best] = lists[best][1:]
	}
}

// inOrder tries one route after the other.
func (v *VirtualHost) inOrder(req *head.Request, path []byte, in *Input) *Route {
	for _, r := range v.Routes {
		if r.match.matches(req, path, in) {
			return in.affordable(r)
		}
	}
	return nil
}

// affordable is r, or nil where conditions were not looked at for what they cost.
func (in *Input) affordable(r *Route) *Route {
	if in.Excess != "" {
		return nil
	}
	return r
}

// compared is the part of a request's path that routes are matched with.
func (v *VirtualHost) compared(req *head.Request, in *Input) []byte {
	path := bare(req.Path)
	if !v.config.ignoreParameters || indexString(path, ";") < 0 {
		return path
	}
	in.path = in.path[:0]
	skip := false
	for _, c := range path {
		if c == ';' || c == '/' {
			skip = c == ';'
		}
		if !skip {
			in.path = append(in.path, c)
		}
	}
	return in.path
}

// domains finds a virtual host by authority.
type domains struct {
	exact    map[string]*VirtualHost
	suffixes []wildcard // longest first
	prefixes []wildcard
	all      *VirtualHost
}

// wildcard is the hosts of all wildcards of one length.
type wildcard struct {
	length int
	hosts  map[string]*VirtualHost
}

// add reports whether the domain was free.
func (d *domains) add(domain string, v *VirtualHost) bool {
	domain = strings.ToLower(domain)
	switch {
	case domain == "*":
		if d.all != nil {
			return false
		}
		d.all = v
		return true
	case strings.HasPrefix(domain, "*"):
		return addWildcard(&d.suffixes, domain[1:], v)
	case strings.HasSuffix(domain, "*"):
		return addWildcard(&d.prefixes, domain[:len(domain)-1], v)
	}
	if d.exact[domain] != nil {
		return false
	}
	if d.exact == nil {
		d.exact = map[string]*VirtualHost{}
	}
	d.exact[domain] = v
	return true
}

func addWildcard(list *[]wildcard, rest string, v *VirtualHost) bool {
	i, ok := slices.BinarySearchFunc(*list, len(rest), func(w wildcard, n int) int { return n - w.length })
	if !ok {
		*list = slices.Insert(*list, i, wildcard{length: len(rest), hosts: map[string]*VirtualHost{}})
	}
	if (*list)[i].hosts[rest] != nil {
		return false
	}
	(*list)[i].hosts[rest] = v
	return true
}

// find searches as Envoy does: the whole name, the longest suffix, the longest prefix, then "*". host is in lower case.
func (d *domains) find(host []byte) *VirtualHost {
	if v := d.exact[string(host)]; v != nil {
		return v
	}
	for _, w := range d.suffixes {
		if w.length < len(host) {
			if v := w.hosts[string(host[len(host)-w.length:])]; v != nil {
				return v
			}
		}
	}
	for _, w := range d.prefixes {
		if w.length < len(host) {
			if v := w.hosts[string(host[:w.length])]; v != nil {
				return v
			}
		}
	}
	return d.all
}

// Find returns the virtual host of an authority, or nil. It allocates nothing after in has been used a while.
func (c *Config) Find(authority []byte, in *Input) *VirtualHost {
	d := &c.domains
	if d.exact == nil && d.suffixes == nil && d.prefixes == nil {
		return d.all
	}
	if authority == nil {
		return nil
	}
	if c.shared.ignorePort {
		authority = authority[:portStart(authority)]
	}
	in.scratch = in.scratch[:0]
	for _, b := range authority {
		in.scratch = append(in.scratch, head.Lower[b])
	}
	return d.find(in.scratch)
}

// portStart is where the colon of the port is, or the end.
func portStart(authority []byte) int {
	for i := len(authority) - 1; i >= 0 && authority[i] != ']'; i-- {
		if authority[i] == ':' {
			return i
		}
	}
	return len(authority)
}

package model

// labelIndex finds pods by labels: namespace → "key=value" → pods. The pair "" holds all pods of the namespace.
type labelIndex map[string]map[string]map[Name]*Pod

func (x labelIndex) put(p *Pod, pair string) {
	ns := x[p.Namespace]
	if ns == nil {
		ns = map[string]map[Name]*Pod{}
		x[p.Namespace] = ns
	}
	if ns[pair] == nil {
		ns[pair] = map[Name]*Pod{}
	}
	ns[pair][p.Name] = p
}

func (x labelIndex) add(p *Pod) {
	x.put(p, "")
	for k, v := range p.Labels {
		x.put(p, k+"="+v)
	}
}

func (x labelIndex) drop(p *Pod, pair string) {
	ns := x[p.Namespace]
	delete(ns[pair], p.Name)
	if len(ns[pair]) == 0 {
		delete(ns, pair)
	}
	if len(ns) == 0 {
		delete(x, p.Namespace)
	}
}

func (x labelIndex) remove(p *Pod) {
	x.drop(p, "")
	for k, v := range p.Labels {
		x.drop(p, k+"="+v)
	}
}

// selected calls f for the pods of the namespace that have all the labels; no labels select all.
func (x labelIndex) selected(namespace string, labels map[string]string, f func(*Pod)) {
	x.some(namespace, labels, func(p *Pod) bool { f(p); return false })
}

// some is selected until f returns true, and reports whether it did.
func (x labelIndex) some(namespace string, labels map[string]string, f func(*Pod) bool) bool {
	best := x[namespace][""]
	for k, v := range labels {
		if list := x[namespace][k+"="+v]; len(list) < len(best) {
			best = list
		}
	}
	for _, p := range best {
		if Matches(labels, p.Labels) && f(p) {
			return true
		}
	}
	return false
}

// Matches reports whether labels has every pair of the selector.
func Matches(selector, labels map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// selectorIndex finds what selects given labels: namespace → one pair of the selector → names. The pair "" holds what
// selects everything or is found by other means.
type selectorIndex map[string]map[string]map[Name]bool

// pairOf picks the pair under which a selector is filed: the smallest, so that it is always the same.
func pairOf(selector map[string]string) string {
	best := ""
	for k, v := range selector {
		if pair := k + "=" + v; best == "" || pair < best {
			best = pair
		}
	}
	return best
}

func (x selectorIndex) add(n Name, selector map[string]string) {
	ns := x[n.Namespace]
	if ns == nil {
		ns = map[string]map[Name]bool{}
		x[n.Namespace] = ns
	}
	pair := pairOf(selector)
	if ns[pair] == nil {
		ns[pair] = map[Name]bool{}
	}
	ns[pair][n] = true
}

func (x selectorIndex) remove(n Name, selector map[string]string) {
	ns, pair := x[n.Namespace], pairOf(selector)
	delete(ns[pair], n)
	if len(ns[pair]) == 0 {
		delete(ns, pair)
	}
	if len(ns) == 0 {
		delete(x, n.Namespace)
	}
}

// candidates calls f for what may select the labels; the caller checks.
func (x selectorIndex) candidates(namespace string, labels map[string]string, f func(Name)) {
	ns := x[namespace]
	for n := range ns[""] {
		f(n)
	}
	for k, v := range labels {
		for n := range ns[k+"="+v] {
			f(n)
		}
	}
}

package inpod

import (
	"cmp"
	"slices"

	"github.com/undermesh/undermesh/ztunnel/proxy"
)

// Pods lists the pods that are served, sorted by namespace and name. Those that were removed and still have connections are
// not in it.
func (m *Manager) Pods() []proxy.PodStatus {
	m.mu.Lock()
	list := make([]proxy.PodStatus, 0, len(m.pods))
	for _, e := range m.pods {
		list = append(list, e.pod.Status())
	}
	m.mu.Unlock()
	slices.SortFunc(list, func(a, b proxy.PodStatus) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name), cmp.Compare(a.UID, b.UID))
	})
	return list
}

package route_test

import (
	"fmt"
	"testing"
)

func TestRetryPriority(t *testing.T) {
	const known = `"name":"envoy.retry_priorities.previous_priorities"`
	typed := func(n int) string {
		return fmt.Sprintf(`,"typedConfig":{"@type":"type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig","updateFrequency":%d}`, n)
	}
	for _, c := range []struct {
		priority string
		want     int
		bad      bool
	}{
		{known + typed(2), 2, false}, {known + typed(0), 0, true}, {known, 0, true}, {`"name":"other"` + typed(2), 0, true},
	} {
		v, err := compile(`{"name":"r","match":{"prefix":"/"},"route":{"cluster":"c","retryPolicy":{"retryOn":"5xx","retryPriority":{` + c.priority + `}}}}`)
		if (err != nil) != c.bad {
			t.Errorf("%s: %v", c.priority, err)
		}
		if err == nil && v.Routes[0].Forward.Policy.Priorities != c.want {
			t.Errorf("%s: after %d tries, want %d", c.priority, v.Routes[0].Forward.Policy.Priorities, c.want)
		}
	}
}

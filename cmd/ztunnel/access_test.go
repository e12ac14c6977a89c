package main

import (
	"testing"

	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/ztunnel/telemetry"
)

func TestAccessOfMesh(t *testing.T) {
	for _, c := range []struct {
		log  *settings.AccessLog
		want telemetry.Access
	}{
		{nil, telemetry.Access{}},
		{&settings.AccessLog{}, telemetry.Access{Quiet: true}},
		{&settings.AccessLog{File: "/dev/stdout"}, telemetry.Access{}},
		{&settings.AccessLog{File: "/dev/stdout", Encoding: settings.AccessLog_ENCODING_JSON}, telemetry.Access{}},
		{&settings.AccessLog{File: "/dev/stdout", Encoding: settings.AccessLog_ENCODING_TEXT}, telemetry.Access{Text: true}},
	} {
		if got := accessOf(c.log); got != c.want {
			t.Errorf("%v: got %+v, want %+v", c.log, got, c.want)
		}
	}
}

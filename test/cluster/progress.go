package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
)

// progress prints records as one readable line each, without time or level: what a person at a terminal wants.
type progress struct{}

func (progress) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }

func (progress) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	b.WriteString("cluster: ")
	if r.Level > slog.LevelInfo {
		b.WriteString(strings.ToLower(r.Level.String()) + ": ")
	}
	b.WriteString(r.Message)
	r.Attrs(func(a slog.Attr) bool {
		fmt.Fprintf(&b, " %s=%v", a.Key, a.Value)
		return true
	})
	_, err := fmt.Fprintln(os.Stderr, b.String())
	return err
}

func (p progress) WithAttrs([]slog.Attr) slog.Handler { return p }
func (p progress) WithGroup(string) slog.Handler      { return p }

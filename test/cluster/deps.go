package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/undermesh/undermesh/test/cluster/image"
)

// dependency is one Debian package and a file that it brings.
type dependency struct{ pkg, file string }

// dependencies are what a cluster needs of Debian, beside Go itself.
func dependencies() []dependency {
	return []dependency{
		{"nftables", "/usr/sbin/nft"}, {"iptables", "/usr/sbin/iptables"}, {"conntrack", "/usr/sbin/conntrack"},
		{"iproute2", "/sbin/ip"}, {"procps", "/usr/bin/pgrep"}, {"tcpdump", "/usr/bin/tcpdump"},
		{"gcc", "/usr/bin/gcc"}, {"libc6-dev", "/usr/include/stdlib.h"}, {"libseccomp-dev", "/usr/include/seccomp.h"},
		{"pkg-config", "/usr/bin/pkg-config"},
	}
}

func missingPackages() []string {
	var out []string
	for _, d := range dependencies() {
		if _, err := os.Stat(d.file); err != nil {
			out = append(out, d.pkg)
		}
	}
	// Only a kernel with modules needs modprobe, for the one that nothing loads by itself.
	if _, err := os.Stat("/proc/sys/net/bridge"); err != nil {
		if _, err := exec.LookPath("modprobe"); err != nil {
			out = append(out, "kmod")
		}
	}
	return out
}

// depsTimeout bounds the whole installation.
const depsTimeout = 15 * time.Minute

// deps installs what is missing by apt-get and says so.
func deps(ctx context.Context, o options, _ []string) error {
	missing := missingPackages()
	if len(missing) == 0 {
		o.log.Info("all Debian packages are installed")
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, depsTimeout)
	defer cancel()
	o.log.Info("installing Debian packages", "packages", strings.Join(missing, " "))
	for _, args := range [][]string{{"update", "-qq"}, append([]string{"install", "-y", "-qq", "--no-install-recommends"}, missing...)} {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("run apt-get %s: %w: %s", args[0], err, out)
		}
	}
	if left := missingPackages(); len(left) > 0 {
		return fmt.Errorf("install Debian packages: still missing after apt-get: %s", strings.Join(left, " "))
	}
	return nil
}

// list collects a repeated option.
type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

// writeImage writes an image of static binaries from scratch.
func writeImage(_ context.Context, o options, args []string) error {
	var names, entry, env, links list
	flags := flag.NewFlagSet("image", flag.ContinueOnError)
	flags.Var(&names, "name", "full reference, repeatable")
	out := flags.String("o", "", "file to write")
	user := flags.String("user", "", "user to run as")
	flags.Var(&entry, "entrypoint", "program and arguments, repeatable")
	flags.Var(&env, "env", "KEY=VALUE, repeatable")
	flags.Var(&links, "link", "PATH=TARGET, repeatable")
	if err := parse(flags, args, -1); err != nil {
		return err
	}
	if len(names) == 0 || *out == "" || flags.NArg() == 0 {
		return fmt.Errorf("parse arguments of image: -name, -o and at least one SRC:DST are needed")
	}
	l := &image.Layer{}
	for _, d := range []string{"dev", "etc", "proc", "sys"} {
		l.Dir(d, 0o755)
	}
	l.Dir("tmp", 0o1777)
	for _, a := range flags.Args() {
		src, dst, ok := strings.Cut(a, ":")
		if !ok {
			return fmt.Errorf("parse arguments of image: %q is not SRC:DST", a)
		}
		l.File(dst, src, 0o755)
	}
	for _, a := range links {
		path, target, ok := strings.Cut(a, "=")
		if !ok {
			return fmt.Errorf("parse option -link of image: %q is not PATH=TARGET", a)
		}
		l.Link(path, target)
	}
	im := image.Image{Names: names, Layer: l, Entrypoint: entry, Env: env, User: *user}
	if err := image.Write(*out, []image.Image{im}); err != nil {
		return err
	}
	o.log.Info("wrote image", "file", *out, "names", names.String())
	return nil
}

package image

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"
)

// Debian describes an image made of Debian packages and all that they depend on.
type Debian struct {
	// Packages are what is wanted.
	Packages []string
	// Skip names dependencies that only maintainer scripts need; those are not run.
	Skip []string
	// Archives caches the downloaded packages.
	Archives string
}

// Layer downloads and unpacks the packages below a temporary directory, which the caller removes after the image is written.
// apt chooses the packages against an empty system, so what this machine has installed does not matter.
func (d Debian) Layer(ctx context.Context) (*Layer, string, error) {
	root, err := os.MkdirTemp("", "debian-image-")
	if err != nil {
		return nil, "", fmt.Errorf("make directory to unpack: %w", err)
	}
	l, err := d.fill(ctx, root)
	if err != nil {
		os.RemoveAll(root)
		return nil, "", err
	}
	return l, root, nil
}

func (d Debian) fill(ctx context.Context, root string) (*Layer, error) {
	files, err := d.fetch(ctx)
	if err != nil {
		// Package lists are missing on a fresh machine, and name files that are gone on one that was not used for long.
		if out, updateErr := exec.CommandContext(ctx, "apt-get", "update", "-qq").CombinedOutput(); updateErr != nil {
			return nil, fmt.Errorf("update package lists: %w: %s (after: %w)", updateErr, out, err)
		}
		if files, err = d.fetch(ctx); err != nil {
			return nil, err
		}
	}
	return d.unpack(ctx, root, files)
}

// fetch downloads what is missing and returns the package files in a stable order.
func (d Debian) fetch(ctx context.Context) ([]string, error) {
	tmp, err := os.MkdirTemp("", "debian-resolve-")
	if err != nil {
		return nil, fmt.Errorf("make directory to resolve: %w", err)
	}
	defer os.RemoveAll(tmp)
	if err := os.WriteFile(filepath.Join(tmp, "status"), nil, 0o644); err != nil {
		return nil, fmt.Errorf("make empty package status: %w", err)
	}
	for _, dir := range []string{filepath.Join(tmp, "partial"), filepath.Join(d.Archives, "partial")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("make cache of packages: %w", err)
		}
	}
	// apt names only what it would download: with an empty cache that is all.
	out, err := d.apt(ctx, tmp, tmp, "--print-uris")
	if err != nil {
		return nil, err
	}
	var files []string
	for _, line := range strings.Split(string(out), "\n") {
		// 'uri' file size checksum
		f := strings.Fields(line)
		if len(f) < 3 || !strings.HasPrefix(f[0], "'") {
			continue
		}
		name, _, _ := strings.Cut(f[1], "_")
		if !slices.Contains(d.Skip, name) {
			files = append(files, f[1])
		}
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("resolve Debian packages %v: apt-get named no file", d.Packages)
	}
	sort.Strings(files)
	_, err = d.apt(ctx, tmp, d.Archives, "--download-only")
	return files, err
}

func (d Debian) apt(ctx context.Context, state, archives, mode string) ([]byte, error) {
	args := []string{"-qq", "-y", "-o", "Dir::State::status=" + filepath.Join(state, "status"), "-o", "APT::Install-Recommends=false",
		"-o", "Dir::Cache::archives=" + archives, "-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root", mode, "install"}
	cmd := exec.CommandContext(ctx, "apt-get", append(args, d.Packages...)...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("run apt-get %s for %v: %w: %s", mode, d.Packages, err, errs.String())
	}
	return out, nil
}

// dropped directories hold nothing that a program needs.
var dropped = []string{"doc", "man", "info", "locale", "lintian", "bash-completion", "bug", "menu", "pixmaps", "apport"}

func (d Debian) unpack(ctx context.Context, root string, files []string) (*Layer, error) {
	for _, dir := range []string{"bin", "sbin", "lib", "lib64"} { // merged /usr, as Debian has it
		if err := os.MkdirAll(filepath.Join(root, "usr", dir), 0o755); err != nil {
			return nil, fmt.Errorf("make directory to unpack: %w", err)
		}
		if err := os.Symlink("usr/"+dir, filepath.Join(root, dir)); err != nil {
			return nil, fmt.Errorf("make merged /usr: %w", err)
		}
	}
	for _, f := range files {
		deb := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", filepath.Join(d.Archives, f))
		tar := exec.CommandContext(ctx, "tar", "-x", "-C", root, "--keep-directory-symlink", "--no-same-owner")
		var errs bytes.Buffer
		deb.Stderr, tar.Stderr = &errs, &errs
		pipe, err := deb.StdoutPipe()
		if err != nil {
			return nil, fmt.Errorf("make pipe: %w", err)
		}
		tar.Stdin = pipe
		if err := deb.Start(); err != nil {
			return nil, fmt.Errorf("unpack %s: %w", f, err)
		}
		if err := tar.Run(); err != nil {
			_ = deb.Wait() // its error follows from the one that is returned
			return nil, fmt.Errorf("unpack %s: %w: %s", f, err, errs.String())
		}
		if err := deb.Wait(); err != nil {
			return nil, fmt.Errorf("unpack %s: %w: %s", f, err, errs.String())
		}
	}
	for _, dir := range dropped {
		if err := os.RemoveAll(filepath.Join(root, "usr/share", dir)); err != nil {
			return nil, fmt.Errorf("remove %s: %w", dir, err)
		}
	}
	converters, err := filepath.Glob(filepath.Join(root, "usr/lib/*/gconv"))
	if err != nil {
		return nil, fmt.Errorf("find character set converters: %w", err)
	}
	for _, dir := range append(converters, filepath.Join(root, "var/cache")) {
		if err := os.RemoveAll(dir); err != nil {
			return nil, fmt.Errorf("remove %s: %w", dir, err)
		}
	}
	l := &Layer{}
	if err := l.Tree(root); err != nil {
		return nil, fmt.Errorf("collect unpacked files: %w", err)
	}
	return l, nil
}

// Package image writes OCI images without a daemon or a registry: one tar in OCI image layout that a container runtime can
// import. The same input gives the same digests: times and owners are dropped, entries are sorted.
package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
)

// Image is one image. Images with the same *Layer share its blob in the tar.
type Image struct {
	// Names are full references (registry/path:tag); each becomes a name of the same image.
	Names []string
	// Layer is the only layer.
	Layer *Layer
	// Entrypoint, Cmd, Env, User and Ports go to the image's configuration.
	Entrypoint, Cmd, Env []string
	User                 string
	WorkingDir           string
}

// Layer collects the files of an image. The zero value is an empty layer. It is not safe for concurrent use.
type Layer struct {
	entries map[string]entry
}

type entry struct {
	header tar.Header
	source string // file to read, for regular files without data
	data   []byte
}

func (l *Layer) put(name string, e entry) {
	if l.entries == nil {
		l.entries = map[string]entry{}
	}
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	for d := path.Dir(name); d != "." && d != "/"; d = path.Dir(d) {
		if _, ok := l.entries[d]; ok {
			break
		}
		l.entries[d] = entry{header: tar.Header{Typeflag: tar.TypeDir, Mode: 0o755}}
	}
	l.entries[name] = e
}

// Dir adds a directory.
func (l *Layer) Dir(name string, mode int64) {
	l.put(name, entry{header: tar.Header{Typeflag: tar.TypeDir, Mode: mode}})
}

// File adds the file src of this machine as name. It is read when the image is written.
func (l *Layer) File(name, src string, mode int64) {
	l.put(name, entry{header: tar.Header{Typeflag: tar.TypeReg, Mode: mode}, source: src})
}

// Data adds a file with this content.
func (l *Layer) Data(name string, data []byte, mode int64) {
	l.put(name, entry{header: tar.Header{Typeflag: tar.TypeReg, Mode: mode}, data: data})
}

// Link adds a symbolic link to target.
func (l *Layer) Link(name, target string) {
	l.put(name, entry{header: tar.Header{Typeflag: tar.TypeSymlink, Mode: 0o777, Linkname: target}})
}

// Has tells whether name was added.
func (l *Layer) Has(name string) bool {
	_, ok := l.entries[strings.TrimPrefix(path.Clean("/"+name), "/")]
	return ok
}

// Tree adds all directories, files and symbolic links below dir; devices and sockets are left out.
func (l *Layer) Tree(dir string) error {
	return filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		name, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch mode := tarMode(info.Mode()); {
		case d.IsDir():
			l.Dir(name, mode)
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			l.Link(name, target)
		case info.Mode().IsRegular():
			l.File(name, p, mode)
		}
		return nil
	})
}

func tarMode(m fs.FileMode) int64 {
	out := int64(m.Perm())
	for bit, t := range map[fs.FileMode]int64{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if m&bit != 0 {
			out |= t
		}
	}
	return out
}

// writeTo writes the layer as a tar in the order of names, so that a directory comes before what it holds.
func (l *Layer) writeTo(w io.Writer) error {
	names := make([]string, 0, len(l.entries))
	for n := range l.entries {
		names = append(names, n)
	}
	sort.Strings(names)
	tw := tar.NewWriter(w)
	for _, n := range names {
		e := l.entries[n]
		h := e.header
		h.Name, h.Format = n, tar.FormatPAX
		if h.Typeflag == tar.TypeDir {
			h.Name += "/"
		}
		if e.source != "" {
			b, err := os.ReadFile(e.source)
			if err != nil {
				return fmt.Errorf("read file of image: %w", err)
			}
			e.data = b
		}
		h.Size = int64(len(e.data))
		if err := tw.WriteHeader(&h); err != nil {
			return fmt.Errorf("write %s to layer: %w", n, err)
		}
		if _, err := tw.Write(e.data); err != nil {
			return fmt.Errorf("write %s to layer: %w", n, err)
		}
	}
	return tw.Close()
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Platform    map[string]string `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// blobs are the content-addressed files of the layout.
type blobs map[string][]byte

func (b blobs) add(mediaType string, data []byte) descriptor {
	sum := sha256.Sum256(data)
	digest := hex.EncodeToString(sum[:])
	b[digest] = data
	return descriptor{MediaType: mediaType, Digest: "sha256:" + digest, Size: len(data)}
}

// Write writes images into one tar at file, by rename, so that readers never see half of it.
func Write(file string, images []Image) error {
	all := blobs{}
	layers := map[*Layer]descriptor{}
	platform := map[string]string{"architecture": runtime.GOARCH, "os": "linux"}
	var manifests []descriptor
	for _, im := range images {
		layer, ok := layers[im.Layer]
		if !ok {
			var buf bytes.Buffer
			if err := im.Layer.writeTo(&buf); err != nil {
				return fmt.Errorf("write layer of image %v: %w", im.Names, err)
			}
			layer = all.add("application/vnd.oci.image.layer.v1.tar", buf.Bytes())
			layers[im.Layer] = layer
		}
		d, err := im.manifest(all, layer)
		if err != nil {
			return err
		}
		d.Platform = platform
		for _, name := range im.Names {
			d.Annotations = map[string]string{"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
			manifests = append(manifests, d)
		}
	}
	index, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests})
	if err != nil {
		return fmt.Errorf("encode image index: %w", err)
	}
	return writeLayout(file, index, all)
}

func (im Image) manifest(all blobs, layer descriptor) (descriptor, error) {
	env := append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, im.Env...)
	cfg, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{"Entrypoint": im.Entrypoint, "Cmd": im.Cmd, "Env": env, "User": im.User,
			"WorkingDir": im.WorkingDir},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{layer.Digest}},
	})
	if err != nil {
		return descriptor{}, fmt.Errorf("encode configuration of image %v: %w", im.Names, err)
	}
	m, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": all.add("application/vnd.oci.image.config.v1+json", cfg),
		"layers": []descriptor{layer},
	})
	if err != nil {
		return descriptor{}, fmt.Errorf("encode manifest of image %v: %w", im.Names, err)
	}
	return all.add("application/vnd.oci.image.manifest.v1+json", m), nil
}

func writeLayout(file string, index []byte, all blobs) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("make directory of images: %w", err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(file), ".image-")
	if err != nil {
		return fmt.Errorf("create image file: %w", err)
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	tw := tar.NewWriter(tmp)
	put := func(name string, data []byte) error {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data)), Format: tar.FormatPAX}
		if err := tw.WriteHeader(h); err != nil {
			return fmt.Errorf("write %s of image: %w", name, err)
		}
		if _, err := tw.Write(data); err != nil {
			return fmt.Errorf("write %s of image: %w", name, err)
		}
		return nil
	}
	if err := put("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	if err := put("index.json", index); err != nil {
		return err
	}
	digests := make([]string, 0, len(all))
	for d := range all {
		digests = append(digests, d)
	}
	sort.Strings(digests)
	for _, d := range digests {
		if err := put("blobs/sha256/"+d, all[d]); err != nil {
			return err
		}
	}
	if err := tw.Close(); err != nil {
		return fmt.Errorf("finish image file: %w", err)
	}
	if err := tmp.Chmod(0o644); err != nil {
		return fmt.Errorf("open up image file: %w", err)
	}
	if err := os.Rename(tmp.Name(), file); err != nil {
		return fmt.Errorf("publish image file: %w", err)
	}
	return nil
}

package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func readTar(t *testing.T, b []byte) (map[string][]byte, []*tar.Header) {
	t.Helper()
	files, order := map[string][]byte{}, []*tar.Header{}
	r := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files, order
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name], order = data, append(order, h)
	}
}

func write(t *testing.T, src string) []byte {
	t.Helper()
	l := &Layer{}
	l.Link("/bin/other", "/usr/bin/tool")
	l.File("/usr/bin/tool", src, 0o755)
	l.Data("etc/passwd", []byte("root\n"), 0o644)
	l.Dir("/tmp", 0o1777)
	out := filepath.Join(t.TempDir(), "x.tar")
	images := []Image{
		{Names: []string{"a.example/one:1", "a.example/one:2"}, Layer: l, Entrypoint: []string{"/bin/other"}},
		{Names: []string{"a.example/two:1"}, Layer: l, Env: []string{"K=V"}},
	}
	if err := Write(out, images); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestWriteIsReproducible: neither the time nor the owner of a file may change a digest.
func TestWriteIsReproducible(t *testing.T) {
	src := filepath.Join(t.TempDir(), "tool")
	if err := os.WriteFile(src, []byte("content"), 0o700); err != nil {
		t.Fatal(err)
	}
	first := write(t, src)
	if err := os.Chtimes(src, time.Unix(1, 0), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, write(t, src)) {
		t.Error("two writes of the same files differ")
	}
	if err := os.WriteFile(src, []byte("changed"), 0o700); err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(first, write(t, src)) {
		t.Error("a changed file does not change the image")
	}
}

func TestWriteMakesALayout(t *testing.T) {
	src := filepath.Join(t.TempDir(), "tool")
	if err := os.WriteFile(src, []byte("content"), 0o700); err != nil {
		t.Fatal(err)
	}
	files, _ := readTar(t, write(t, src))
	for name, data := range files {
		if digest, ok := strings.CutPrefix(name, "blobs/sha256/"); ok {
			if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != digest {
				t.Errorf("blob %s has another digest", name)
			}
		}
	}
	var index struct{ Manifests []descriptor }
	if err := json.Unmarshal(files["index.json"], &index); err != nil {
		t.Fatal(err)
	}
	var names, layers []string
	for _, d := range index.Manifests {
		names = append(names, d.Annotations["io.containerd.image.name"])
		var m struct {
			Config descriptor
			Layers []descriptor
		}
		if err := json.Unmarshal(blob(files, d.Digest), &m); err != nil {
			t.Fatal(err)
		}
		layers = append(layers, m.Layers[0].Digest)
		if blob(files, m.Config.Digest) == nil {
			t.Errorf("%s has no configuration", names[len(names)-1])
		}
	}
	if got := strings.Join(names, " "); got != "a.example/one:1 a.example/one:2 a.example/two:1" {
		t.Errorf("names are %s", got)
	}
	if layers[0] != layers[2] {
		t.Error("images of one layer do not share it")
	}
	_, entries := readTar(t, blob(files, layers[0]))
	var got []string
	for _, h := range entries {
		got = append(got, h.Name)
		if h.Uid != 0 || h.Gid != 0 || h.ModTime.Unix() > 0 {
			t.Errorf("%s keeps owner %d:%d or time %v", h.Name, h.Uid, h.Gid, h.ModTime)
		}
	}
	if want := "bin/ bin/other etc/ etc/passwd tmp/ usr/ usr/bin/ usr/bin/tool"; strings.Join(got, " ") != want {
		t.Errorf("entries are %v, want %s", got, want)
	}
}

func blob(files map[string][]byte, digest string) []byte {
	return files["blobs/sha256/"+strings.TrimPrefix(digest, "sha256:")]
}

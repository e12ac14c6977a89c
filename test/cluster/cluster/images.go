package cluster

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/undermesh/undermesh/test/cluster/build"
	"github.com/undermesh/undermesh/test/cluster/image"
	"github.com/undermesh/undermesh/test/cluster/node"
)

// imagesFormat is part of every image's key: it changes when the code below writes other bytes from the same input.
const imagesFormat = "4"

// clientPackages are the programs of the client image, clientSkip those of their dependencies that only maintainer scripts need.
var (
	clientPackages = []string{"curl", "netcat-openbsd", "openssl", "tcpdump", "iproute2", "dash", "coreutils", "grep", "libc-bin"}
	clientSkip     = []string{"adduser", "passwd", "debconf", "dpkg", "tar", "debianutils", "libpam-modules", "libpam-modules-bin",
		"libpam0g", "libsemanage2", "libsemanage-common", "libsepol2", "libdb5.3", "libaudit1", "libaudit-common", "libcap-ng0",
		"libcap2-bin", "gcc-12-base"}
)

// buildTimeout bounds all compiling (minutes with cold caches, more on a slow line), imageTimeout the making of all images.
const (
	buildTimeout = time.Hour
	imageTimeout = 15 * time.Minute
)

// Build compiles everything that a cluster runs, unless it is cached.
func (c *Cluster) Build(ctx context.Context) (build.Set, error) {
	ctx, cancel := context.WithTimeout(ctx, buildTimeout)
	defer cancel()
	return build.Build(ctx, build.Config{Root: c.cfg.Root, Cache: filepath.Join(c.cfg.Root, ".cache", "cluster", "bin"), Log: c.cfg.Log})
}

// Samples writes the images of samples and client to .cache/images and returns their files.
func (c *Cluster) Samples(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, buildTimeout)
	defer cancel()
	bin, err := build.Build(ctx, build.Config{Root: c.cfg.Root, Cache: filepath.Join(c.cfg.Root, ".cache", "cluster", "bin"),
		Only: []string{build.Samples, build.CoreDNS}, Log: c.cfg.Log})
	if err != nil {
		return nil, err
	}
	return c.images(ctx, bin)
}

// images returns the image files that a cluster starts with: first those that the system needs.
func (c *Cluster) images(ctx context.Context, bin build.Set) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, imageTimeout)
	defer cancel()
	dir := filepath.Join(c.cfg.Root, ".cache", "images")
	// Two runs would write the same; the later rename wins.
	system, samples, client := filepath.Join(dir, "system.tar"), filepath.Join(dir, "samples.tar"), filepath.Join(dir, "client.tar")
	err := c.cached(system, bin.Key(build.CoreDNS)+bin.Key(build.Samples), func() error {
		return image.Write(system, systemImages(bin))
	})
	if err != nil {
		return nil, err
	}
	err = c.cached(samples, bin.Key(build.Samples), func() error { return image.Write(samples, sampleImages(bin)) })
	if err != nil {
		return nil, err
	}
	deb := image.Debian{Packages: clientPackages, Skip: clientSkip, Archives: filepath.Join(c.cfg.Root, ".cache", "debs")}
	err = c.cached(client, strings.Join(clientPackages, " ")+bin.Key(build.Samples), func() error {
		layer, root, err := deb.Layer(ctx)
		if err != nil {
			return err
		}
		defer os.RemoveAll(root)
		return image.Write(client, clientImages(bin, layer))
	})
	return []string{system, samples, client}, err
}

// cached calls write unless file was written with the same key.
func (c *Cluster) cached(file, input string, write func() error) error {
	sum := sha256.Sum256([]byte(imagesFormat + " " + input))
	key := hex.EncodeToString(sum[:])
	keyFile := file + ".key"
	if have, err := os.ReadFile(keyFile); err == nil && string(have) == key {
		if _, err := os.Stat(file); err == nil {
			return nil
		}
	}
	start := time.Now()
	if err := write(); err != nil {
		return err
	}
	if err := os.WriteFile(keyFile, []byte(key), 0o644); err != nil {
		return fmt.Errorf("write key of image: %w", err)
	}
	c.cfg.Log.Info("wrote images", "file", file, "dur", since(start))
	return nil
}

// scratch is a layer with the directories that every container has.
func scratch() *image.Layer {
	l := &image.Layer{}
	for _, d := range []string{"dev", "etc", "proc", "sys"} {
		l.Dir(d, 0o755)
	}
	l.Dir("tmp", 0o1777)
	return l
}

// samplesPath is where the samples program lies in images; names link to it.
const samplesPath = "/usr/bin/samples"

func withSamples(l *image.Layer, bin build.Set, names ...string) *image.Layer {
	l.File(samplesPath, bin.Path(build.Samples, "samples"), 0o755)
	for _, n := range names {
		l.Link(n, samplesPath)
	}
	return l
}

func systemImages(bin build.Set) []image.Image {
	dns := scratch()
	dns.File("/coredns", bin.Path(build.CoreDNS, "coredns"), 0o755)
	return []image.Image{
		{Names: []string{node.PauseImage}, Layer: withSamples(scratch(), bin, "/pause"), Entrypoint: []string{"/pause"}},
		{Names: []string{"registry.k8s.io/coredns/coredns:v1.14.6"}, Layer: dns, Entrypoint: []string{"/coredns"}},
	}
}

// sampleImages are the servers of the documents, under the names that their manifests use.
func sampleImages(bin build.Set) []image.Image {
	l := withSamples(scratch(), bin, "/bin/httpbin", "/bin/gunicorn", "/bin/helloworld", "/bin/tcp-echo", "/bin/go-echo", "/bin/load", "/bin/pause",
		"/bin/productpage", "/bin/details", "/bin/reviews", "/bin/mongod", "/bin/nginx", "/usr/bin/fortio")
	helloworld := func(version string) image.Image {
		name := "docker.io/istio/examples-helloworld-" + version
		return image.Image{Names: []string{name + ":latest", name + ":1.0"}, Layer: l, Entrypoint: []string{"/bin/helloworld"},
			Env: []string{"SERVICE_VERSION=" + version}}
	}
	return append(bookinfoImages(l), []image.Image{
		{Names: []string{"docker.io/kennethreitz/httpbin:latest", "docker.io/kong/httpbin:latest"},
			Layer: l, Entrypoint: []string{"/bin/httpbin"}},
		helloworld("v1"), helloworld("v2"),
		{Names: []string{"docker.io/istio/tcp-echo-server:1.1", "docker.io/istio/tcp-echo-server:1.2",
			"docker.io/istio/tcp-echo-server:1.3", "docker.io/istio/tcp-echo-server:latest"}, Layer: l,
			Entrypoint: []string{"/bin/tcp-echo"}, Cmd: []string{"9000", "hello"}},
		{Names: []string{"docker.io/cjimti/go-echo:latest"}, Layer: l, Entrypoint: []string{"/bin/go-echo"}},
		{Names: []string{"docker.io/fortio/fortio:latest_release", "docker.io/fortio/fortio:latest"}, Layer: l, Entrypoint: []string{"/usr/bin/fortio"},
			Cmd: []string{"server"}},
		{Names: []string{"docker.io/library/nginx:latest"}, Layer: l, Entrypoint: []string{"/bin/nginx"}},
		{Names: []string{"localhost/undermesh/samples:latest"}, Layer: l, Entrypoint: []string{samplesPath}},
	}...)
}

// bookinfoTag is that of the images in the documents' manifests.
const bookinfoTag = ":1.16.2"

const bookinfoName = "docker.io/istio/examples-bookinfo-"

// bookinfoImages are the parts of Bookinfo, those with a shell apart.
func bookinfoImages(l *image.Layer) []image.Image {
	part := func(program, version string) image.Image {
		return image.Image{Names: []string{bookinfoName + program + "-" + version + bookinfoTag}, Layer: l, Entrypoint: []string{"/bin/" + program},
			Env: []string{"SERVICE_VERSION=" + version}}
	}
	return []image.Image{part("productpage", "v1"), part("details", "v1"), part("reviews", "v1"), part("reviews", "v2"), part("reviews", "v3"),
		{Names: []string{bookinfoName + "mongodb" + bookinfoTag}, Layer: l, Entrypoint: []string{"/bin/mongod"}}}
}

// clientImages is one image of Debian's own programs: exit codes and messages are the real ones.
func clientImages(bin build.Set, l *image.Layer) []image.Image {
	// What maintainer scripts would have made. tcpdump gives up root for its own user and fails without one.
	l.Data("/etc/passwd", []byte("root:x:0:0:root:/root:/bin/sh\ntcpdump:x:104:104::/nonexistent:/usr/sbin/nologin\n"), 0o644)
	l.Data("/etc/group", []byte("root:x:0:\ntcpdump:x:104:\n"), 0o644)
	l.Data("/etc/nsswitch.conf", []byte("passwd: files\ngroup: files\nhosts: files dns\n"), 0o644)
	l.Link("/usr/bin/nc", "nc.openbsd")
	if !l.Has("/usr/bin/sh") {
		l.Link("/usr/bin/sh", "dash")
	}
	for _, d := range []string{"dev", "proc", "sys", "root"} {
		l.Dir(d, 0o755)
	}
	l.Dir("tmp", 0o1777)
	withSamples(l, bin, "/usr/bin/load", "/usr/bin/ask", "/usr/bin/ratings", "/usr/sbin/squid")
	images := []image.Image{
		{Names: []string{"docker.io/curlimages/curl:latest", "localhost/undermesh/client:latest"}, Layer: l, Cmd: []string{"/bin/sh"}},
		{Names: []string{"docker.io/sameersbn/squid:3.5.27"}, Layer: l, Entrypoint: []string{"/usr/sbin/squid"}},
	}
	// The documents call the page from the ratings pod, with curl.
	for _, version := range []string{"v1", "v2", "v-faulty", "v-delayed", "v-unavailable", "v-unhealthy"} {
		images = append(images, image.Image{Names: []string{bookinfoName + "ratings-" + version + bookinfoTag}, Layer: l,
			Entrypoint: []string{"/usr/bin/ratings"}, Env: []string{"SERVICE_VERSION=" + version}})
	}
	return images
}

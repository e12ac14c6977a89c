package main

import (
	"crypto/x509"
	"os"
	"os/exec"
	"testing"
)

// TestRootsOfTheImage: where the file system has no certificates, as in our image, servers of public authorities can be verified all the
// same (TLS that a DestinationRule asks for). A process reads the system's roots once, so this is another one.
func TestRootsOfTheImage(t *testing.T) {
	if os.Getenv("SSL_CERT_FILE") == os.DevNull {
		if pool, err := x509.SystemCertPool(); err != nil || pool.Equal(x509.NewCertPool()) {
			t.Errorf("there are no roots: %v", err)
		}
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run", "^TestRootsOfTheImage$")
	cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+os.DevNull, "SSL_CERT_DIR="+t.TempDir())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

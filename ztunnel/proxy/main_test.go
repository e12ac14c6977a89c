package proxy

import (
	"os"
	"testing"

	"github.com/undermesh/undermesh/test/leaktest"
)

// TestMain fails when tests leave goroutines or file descriptors behind.
func TestMain(m *testing.M) { os.Exit(leaktest.Run(m)) }

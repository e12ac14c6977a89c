// Command enforcement writes docs/enforcement.md from the table of package controller/model/support. Run it with "make
// generate".
package main

import (
	"fmt"
	"os"

	"github.com/undermesh/undermesh/controller/model/support"
)

func main() {
	if err := os.WriteFile("docs/enforcement.md", []byte(support.Markdown()), 0o644); err != nil {
		fmt.Fprintln(os.Stderr, "enforcement: write documentation:", err)
		os.Exit(1)
	}
}

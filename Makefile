# Public commands: see README.md.
.PHONY: test test-unit
test: test-unit
test-unit:
	go test ./...

// Package sniff tells from the first bytes of a TCP connection what it speaks, and which server a TLS client asks for.
//
// It reads nothing: callers show it the bytes that came so far, and keep them for whoever serves the connection. What it does
// not know for sure to be HTTP or TLS is TCP. It never asks for more than MaxBytes.
package sniff

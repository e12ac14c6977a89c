package client

// Understands reports whether snapshots are made of resources of the type. A controller serves others beside them, to those
// who ask.
func Understands(typ string) bool { return newMessage(typ) != nil }

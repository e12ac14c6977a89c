package hbone

import "sync/atomic"

const (
	defaultBudget = 256 << 20
	// minWindow is what a stream, and a connection, may always have on its way, in bytes: with an empty backlog a stream has
	// credit, so that nothing waits for others.
	minWindow = 64 << 10
	// minHeld is what a stream may hold in any case, in bytes.
	minHeld = 16 << 10
)

// Budget bounds what all connections that share it hold for readers that are slow. From half of it on, windows are brought
// back to 64 KiB only; when it is spent, a stream that would hold more than 16 KiB is reset. Safe for concurrent use; nil has
// no bound.
type Budget struct {
	limit int64
	held  atomic.Int64
}

// NewBudget makes a Budget of limit bytes; 0 means 256 MiB.
func NewBudget(limit int64) *Budget {
	if limit <= 0 {
		limit = defaultBudget
	}
	return &Budget{limit: limit}
}

// Held returns the bytes of the buffers that are held now.
func (b *Budget) Held() int64 {
	if b == nil {
		return 0
	}
	return b.held.Load()
}

func (b *Budget) add(n int) {
	if b != nil {
		b.held.Add(int64(n))
	}
}

func (b *Budget) tight() bool { return b != nil && b.held.Load() > b.limit/2 }

func (b *Budget) spent() bool { return b != nil && b.held.Load() >= b.limit-largeChunk }

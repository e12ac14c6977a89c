package http

// mirror sends the copies of the request that its route asks for.
func (x *exchange) mirror() {}

package api

import "crypto/tls"

// TLS12Suites are the suites of the documents (MT-14), for whoever speaks TLS 1.2; those of TLS 1.3 cannot be chosen in Go.
// Which of two is taken crypto/tls decides by the hardware.
func TLS12Suites() []uint16 {
	return []uint16{
		tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
		tls.TLS_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_RSA_WITH_AES_128_GCM_SHA256,
	}
}

package credential

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// Lists say which certificates their issuers have taken back.
type Lists []*x509.RevocationList

func readLists(data []byte) (Lists, error) {
	var out Lists
	err := blocks(data, "X509 CRL", func(der []byte) error {
		l, err := x509.ParseRevocationList(der)
		out = append(out, l)
		return err
	})
	return out, err
}

// Check returns nil for a verified chain, root last, none of whose certificates is revoked. Each issuer in it must have a list that
// is its own and not over: nobody knows otherwise what it took back.
func (l Lists) Check(chain []*x509.Certificate, now time.Time) error {
	for i := 0; i+1 < len(chain); i++ {
		if err := l.one(chain[i], chain[i+1], now); err != nil {
			return err
		}
	}
	return nil
}

func (l Lists) one(c, issuer *x509.Certificate, now time.Time) error {
	why := errors.New("there is no list of revoked certificates")
	for _, list := range l {
		if !bytes.Equal(list.RawIssuer, issuer.RawSubject) || list.CheckSignatureFrom(issuer) != nil {
			continue
		}
		if now.Before(list.ThisUpdate) || !list.NextUpdate.IsZero() && now.After(list.NextUpdate) {
			why = fmt.Errorf("the list of revoked certificates counts from %s to %s only", list.ThisUpdate.Format(time.RFC3339), list.NextUpdate.Format(time.RFC3339))
			continue
		}
		for _, r := range list.RevokedCertificateEntries {
			if r.SerialNumber.Cmp(c.SerialNumber) == 0 {
				return fmt.Errorf("verify certificate: %.200q is revoked", c.Subject)
			}
		}
		why = nil
	}
	if why != nil {
		return fmt.Errorf("verify certificate: of issuer %.200q %w", issuer.Subject, why)
	}
	return nil
}

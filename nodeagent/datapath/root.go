package datapath

// CgroupRoot is the directory of the cgroup that Open attached to: Config's, or the one that was found or mounted.
func (d *Datapath) CgroupRoot() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cfg.CgroupRoot
}

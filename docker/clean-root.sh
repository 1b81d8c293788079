#!/bin/sh
# Makes of the base's root file system one that programs run in and nothing is installed into: no package manager, compiler,
# pip or set-user-id bit, no addresses of package mirrors. Runs in a stage of its own, whose files the image is then made of,
# so nothing of the base is left in a layer below. The list of packages (/var/lib/dpkg/status) and their licences stay.
set -eu

cat >>/etc/passwd <<'END'
nonroot:x:65532:65532:RewardFL:/tmp:/usr/sbin/nologin
END
echo 'nonroot:x:65532:' >>/etc/group

# Python: no pip, no parts for development or screens. Bytecode is checked by nothing but the image's own digest: times of
# files do not matter then, and nothing is compiled at start-up, where the file system cannot be written to.
library=$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
for unused in ensurepip idlelib lib2to3 pydoc_data test tkinter turtledemo 'config-*'; do
  # shellcheck disable=SC2086 - a pattern
  rm -rf "$library"/$unused
done
rm -rf "$library"/site-packages/* /usr/lib/python3/dist-packages/* /usr/share/python-wheels
rm -rf /usr/local/bin/pip* /usr/local/bin/idle* /usr/local/bin/2to3* /usr/local/bin/pydoc* /usr/local/include
find "$library" -name __pycache__ -prune -exec rm -rf {} +
python3 -m compileall -q -f -j 0 --invalidation-mode unchecked-hash "$library"

# Debian: its programs that install, and perl, which only they use. rm and find are still needed below.
cd /usr/bin
rm -rf apt apt-* deb-systemd-* debconf* dpkg* perl* pip* update-alternatives
cd /usr/sbin
rm -rf add-shell dpkg-* invoke-rc.d remove-shell service update-* deluser delgroup adduser addgroup
rm -rf /usr/lib/apt /usr/lib/dpkg /usr/lib/*/libapt-*.so* /usr/lib/*/perl-base /usr/lib/systemd /usr/lib/python3 /usr/share/python3 \
  /usr/share/perl5 /usr/share/dpkg /usr/share/debconf /usr/share/keyrings /usr/share/lintian /usr/share/bug \
  /usr/share/man /usr/share/info /usr/share/locale /usr/share/bash-completion /usr/share/zsh /usr/include \
  /etc/apt /etc/dpkg /etc/cron.* /etc/init.d /etc/rc?.d /etc/systemd /etc/logrotate.d /etc/pip.conf \
  /boot /home /media /mnt /srv
find /usr/share/doc -type f ! -name copyright -delete
find /usr/share/doc -type d -empty -delete
# find complains of folders that it has just emptied of what it was going to visit.
find /var/lib/dpkg -mindepth 1 ! -name status -delete 2>/dev/null || true
rm -rf /etc/*- /etc/.pwd.lock /var/lib/apt /var/cache/* /var/log/* /var/backups /tmp/* /root/.[!.]* /run/* /var/tmp/*
find / -xdev -perm /6000 -type f -exec chmod a-s {} +

# One time for all, so that the layer is the same whenever it is made. What the builder mounts (resolv.conf, hosts) cannot be
# touched and is in no layer.
find / -xdev -path /proc -prune -o -path /sys -prune -o -path /dev -prune -o -path /run -prune -o -path /docker -prune -o \
  -exec touch -h -d @0 {} + 2>/dev/null || true

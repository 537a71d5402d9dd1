#!/bin/sh
# Install presignd as a service of this machine, or remove it. Run it as root, any number of times: it reports what it
# did, and changes nothing that is already right.
#
#   systemd/install.sh [WHEEL]      install program, user and unit; enable and start it once a configuration exists
#   systemd/install.sh --broker [WHEEL]   the same for the broker (/etc/presignd-broker/broker.toml), a separate service
#   systemd/install.sh --remove     remove all that; keep configuration, ledger and links
#   systemd/install.sh --purge      remove these and the users too
#
# Without WHEEL the program is installed from the checkout that this script is in.
set -eu
umask 022

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
program=/opt/presignd
service=presignd
config=/etc/presignd
file=config.toml
units=/etc/systemd/system
link=/usr/local/bin/presignd
changed=

say() { printf 'presignd: %s\n' "$*"; }
die() { say "$*" >&2; exit 1; }
booted() { [ -d /run/systemd/system ]; }

# elsewhere PATH: whether PATH is a symlink or has another hard link; such a file is left alone.
elsewhere() {
  if [ -L "$1" ]; then
    why="it is a symlink"
  elif [ -f "$1" ] && [ "$(stat -c %h "$1")" -gt 1 ]; then
    why="the file has another name elsewhere"
  else
    return 1
  fi
  say "left $1 alone, as $why; see that $service can read it"
}

# put FILE TARGET: make TARGET a copy of FILE, mode 0644.
put() {
  if cmp -s "$here/$1" "$2"; then return; fi
  if [ -L "$2" ]; then
    say "left $2 alone, as it is a symlink"
    return
  fi
  install -D -m 0644 "$here/$1" "$2"
  changed=yes
  say "wrote $2"
}

# drop PATH…: remove those that exist.
drop() {
  for path; do
    if [ -e "$path" ] || [ -L "$path" ]; then
      rm -rf -- "$path"
      say "removed $path"
    fi
  done
}

# The checkout without files that are not part of it: stale build output would end up in the program.
checkout_copy() {
  tar -C "$here/.." --exclude=./.git --exclude=./.venv --exclude=./build --exclude=__pycache__ --exclude=./*.egg-info \
    -cf - ./pyproject.toml ./README.md ./LICENSE ./presignd ./systemd ./desktop | tar -C "$1" -xf -
}

# source_sum PATH: a checksum of a wheel's or a folder's content.
source_sum() {
  if [ -f "$1" ]; then
    sha256sum < "$1"
  else
    (cd "$1" && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum)
  fi
}

install_program() {
  case $here in "$program"/*) return ;; esac # installed by pip, together with this script
  copy=$(mktemp -d)
  trap 'rm -rf "$copy"' EXIT
  if [ -n "$1" ]; then from=$1; else from=$copy && checkout_copy "$copy"; fi
  sum=$(source_sum "$from")
  if [ "$(cat "$program/.source" 2>/dev/null)" = "$sum" ] && "$program/bin/presignd" --version >/dev/null 2>&1; then
    return
  fi
  python=${PYTHON:-/usr/bin/python3}
  "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    die "$python is no Python 3.11 or later with its venv module (apt-get install python3-venv, or set PYTHON)"
  [ -x "$program/bin/python" ] || "$python" -m venv "$program"
  "$program/bin/pip" install --quiet --disable-pip-version-check --upgrade "$from"
  printf '%s\n' "$sum" > "$program/.source"
  changed=yes
  say "installed $("$program/bin/presignd" --version) in $program"
}

# unit NAME: install a unit, with its drop-in on a later systemd.
unit() {
  put "$1" "$units/$1"
  if [ "$(systemctl --version | sed -n '1s/^systemd \([0-9]*\).*/\1/p')" -ge 253 ]; then
    put notify-reload.conf "$units/$1.d/notify-reload.conf"
  fi
}

install_units() {
  put "$service.sysusers.conf" "/etc/sysusers.d/$service.conf"
  systemd-sysusers "$service.conf"
  if [ $service = presignd ]; then
    put presignd.tmpfiles.conf /etc/tmpfiles.d/presignd.conf
    systemd-tmpfiles --create presignd.conf
    unit presignd@.service
  fi
  unit "$service.service"
  if [ ! -e "$link" ] && [ ! -L "$link" ]; then
    ln -s "$program/bin/presignd" "$link"
    say "linked $link"
  fi
}

# Configurations and secret files in $config: only root writes them, only the service's group reads them.
guard_config() {
  if elsewhere "$config"; then return; fi
  install -d -o root -g "$service" -m 0750 "$config"
  guard_files "$config"
  if [ $service = presignd-broker ] && [ ! -L "$config/tokens.d" ]; then
    install -d -o root -g "$service" -m 2750 "$config/tokens.d"
    guard_files "$config/tokens.d"
  fi
}

# guard_files FOLDER: the same for the files in it.
guard_files() {
  for each in "$1"/*; do
    if elsewhere "$each" || [ ! -f "$each" ]; then continue; fi
    if [ "$(stat -c %a:%U:%G "$each")" != "640:root:$service" ]; then
      chown "root:$service" "$each"
      chmod 0640 "$each"
      say "$each is root's, and the group $service may read it (0640)"
    fi
  done
}

start() {
  if [ ! -e "$config/$file" ]; then
    if [ $service = presignd ]; then
      say "next: presignd init $config/$file, then this script again"
    else
      say "next: write $config/$file (presignd init --with-broker does), then this script again with --broker"
    fi
    return
  fi
  if ! systemctl is-enabled --quiet "$service" 2>/dev/null; then
    systemctl --quiet enable "$service"
    say "enabled $service.service"
  fi
  if ! booted; then
    say "systemd does not run here: $service starts at the next boot"
    return
  fi
  systemctl daemon-reload
  if ! systemctl is-active --quiet "$service"; then
    systemctl start "$service" || die "it did not start; see: journalctl -u $service -n 20"
    say "started $service.service"
  elif [ -n "$changed" ]; then
    systemctl restart "$service" || die "it did not start again; see: journalctl -u $service -n 20"
    say "restarted $service.service"
  fi
}

# instances: list the running and the enabled ones.
instances() {
  if booted; then systemctl list-units --plain --no-legend --all 'presignd@*.service' | cut -d ' ' -f 1; fi
  for unit in "$units"/multi-user.target.wants/presignd@*.service; do
    if [ -L "$unit" ]; then basename "$unit"; fi
  done
}

remove() {
  for unit in presignd-broker.service presignd.service $(instances | sort -u); do
    if [ ! -e "$units/$(printf %s "$unit" | sed 's/@.*[.]/@./')" ]; then continue; fi
    if booted; then systemctl stop "$unit"; fi
    systemctl --quiet disable "$unit"
    say "stopped and disabled $unit"
  done
  if [ "$(readlink "$link" 2>/dev/null)" = "$program/bin/presignd" ]; then drop "$link"; fi
  for unit in presignd.service presignd@.service presignd-broker.service; do
    drop "$units/$unit" "$units/$unit.d/notify-reload.conf"
    rmdir "$units/$unit.d" 2>/dev/null || true # your own drop-ins stay
  done
  drop /etc/sysusers.d/presignd.conf /etc/sysusers.d/presignd-broker.conf /etc/tmpfiles.d/presignd.conf "$program"
  if booted; then systemctl daemon-reload; fi
}

purge() {
  drop "$units/presignd.service.d" "$units/presignd@.service.d" "$units/presignd-broker.service.d" \
    /etc/presignd /etc/presignd-broker /var/lib/presignd /var/lib/presignd-*
  for user in presignd presignd-broker; do
    if getent passwd "$user" >/dev/null; then
      say "files of $user elsewhere stay; to find them: find / -xdev -uid $(id -u "$user") -o -gid $(id -g "$user")"
      userdel "$user"
      say "removed the user $user"
    fi
  done
  for group in presignd presignd-broker presignd-links; do
    if getent group "$group" >/dev/null; then
      groupdel "$group"
      say "removed the group $group"
    fi
  done
}

usage() { die "usage: $0 [[--broker] [WHEEL] | --remove | --purge]"; }

if [ "${1-}" = --broker ]; then
  service=presignd-broker config=/etc/presignd-broker file=broker.toml
  shift
  case ${1-} in -*) usage ;; esac # --remove and --purge remove the daemon too
fi
[ $# -le 1 ] || usage
[ "$(id -u)" = 0 ] || die "run this as root"
case ${1-} in
  --remove)
    remove
    say "configuration, ledger and links stay: $config, $config-broker, /var/lib/presignd (--purge takes them too)"
    ;;
  --purge)
    remove
    purge
    ;;
  -*) usage ;;
  *)
    install_program "${1-}"
    install_units
    guard_config
    start
    say "all is in place: $("$program/bin/presignd" --version)"
    ;;
esac

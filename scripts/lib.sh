# shellcheck shell=bash
# Functions shared by the scripts, which source this file. Sets `root`, the checkout.
#
#   prepare             install pyaoe and its tools if needed, and put them on PATH
#   user_cache          print the user's cache directory for this checkout
#   step NAME CMD...    run a command; print result and time, and its output if it fails
#   run_pytest ARG...   run pytest with the python on PATH, several tests at a time
#   fail MESSAGE        print an error, and exit

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
red='' green='' plain='' again=''
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ] && [ "${TERM:-dumb}" != dumb ]; then
  red=$'\e[31m' green=$'\e[32m' plain=$'\e[0m' again=$'\r'
fi

fail() {
  echo "${0##*/}: $1" >&2
  exit 1
}

microseconds() { echo "${EPOCHREALTIME//[.,]/}"; }

since() { # START: print the time since then, "0.4 s"
  local tenths=$((($(microseconds) - $1) / 100000))
  echo "$((tenths / 10)).$((tenths % 10)) s"
}

step() {
  local name=$1 start output status=0
  start=$(microseconds)
  shift
  [ -z "$again" ] || printf '%-12s...' "$name"
  output=$("$@" 2>&1 </dev/null) || status=$?
  if [ "$status" = 0 ]; then
    printf '%s%-12s%sok%s  %s\n' "$again" "$name" "$green" "$plain" "$(since "$start")"
  else
    printf '%s%-12s%sFAILED%s  %s\n%s\n' \
      "$again" "$name" "$red" "$plain" "$(since "$start")" "$output"
  fi
  return "$status"
}

# Print what an environment depends on: the Python, the checkout, the requirements.
fingerprint() { # VENV
  "$1/bin/python" -V >/dev/null && "${PYTHON:-$1/bin/python}" -V &&
    echo "$root" && sha256sum <"$root/pyproject.toml"
}

fresh() { # VENV: succeed if it is complete and its fingerprint is current
  [ -r "$1/stamp" ] && [ "$(fingerprint "$1" 2>/dev/null)" = "$(<"$1/stamp")" ]
}

user_cache() {
  local cache=${XDG_CACHE_HOME:-${HOME:+$HOME/.cache}}
  [ -n "$cache" ] || return
  cache=$cache/pyaoe/$(cksum <<<"$root" | cut -d ' ' -f 1)
  mkdir -p "$cache" 2>/dev/null && [ -O "$cache" ] && echo "$cache"
}

# The environment is .venv. If that is stale and belongs to another user, or the checkout
# is not writable, the environment is in the user's cache directory instead.
prepare() {
  local venv=$root/.venv
  if ! fresh "$venv"; then
    if [ ! -w "$root" ] || { [ -e "$venv" ] && [ ! -O "$venv" ]; }; then
      venv=$(user_cache)/venv ||
        fail "$root: not writable, and no cache directory. Set XDG_CACHE_HOME to a writable directory"
    fi
    fresh "$venv" || step environment "$root/scripts/venv" "$venv" || exit 1
  fi
  unset PYTHONHOME PYTHONPATH
  export VIRTUAL_ENV=$venv PATH=$venv/bin:$PATH
}

run_pytest() {
  # Network namespaces and FUSE mounts need root, or a user namespace.
  local namespace=()
  if [ "$(id -u)" != 0 ]; then
    if unshare -Urnm true 2>/dev/null; then
      namespace=(unshare -Urnm)
    else
      echo "namespaces  not permitted: see sysctl user.max_user_namespaces" \
        "and kernel.apparmor_restrict_unprivileged_userns"
    fi
  fi
  # In a user namespace the uid is 0; pytest names its directory in /tmp after LOGNAME.
  LOGNAME=$(id -un 2>/dev/null || id -u)
  export LOGNAME
  # CI installs all programs that the tests need, so there a skipped test is a failure.
  [ -z "${PYAOE_NO_SKIP:-}" ] || set -- -p tests.no_skip "$@"
  # The tests spend much of their time waiting: more workers than there are CPUs.
  set -- -n "$(($(nproc) + 2))" --dist worksteal "$@"
  "${namespace[@]}" python -m pytest -q "$@"
}

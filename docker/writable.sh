#!/bin/sh
# Ends with 2 and a sentence where this container cannot write to a folder of the host: writable.sh FOLDER...
# A folder that is not there yet is no fault. OUT is what the host calls it.
set -eu
me=$(id -u)
for folder; do
    if [ ! -e "$folder" ] || [ -w "$folder" ]; then
        continue
    fi
    owner=$(stat -c %u "$folder")
    case $owner in
        "$me") remedy="Make it writable: chmod u+rwx, or mount it without :ro" ;;
        *) remedy="Give it to that user: sudo chown -R $me $OUT" ;;
    esac
    # Not for root: the image is for a user without rights.
    case $owner in
        0 | "$me") ;;
        *) remedy="$remedy. Or make the image for its owner: docker compose down --volumes, then \
FEDRL_UID=$owner docker compose up --build" ;;
    esac
    echo "$folder (OUT=$OUT on the host) belongs to user $owner, and user $me, as which this container runs," \
        "cannot write there. $remedy" >&2
    exit 2
done
